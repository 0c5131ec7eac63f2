"""A Redis target: one server or a cluster. It knows no tables: a flow's rows are where its templates say."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.apply.mapping import map_columns
from consumers.reconcile import fast, mapping
from consumers.reconcile.forms import Held
from consumers.reconcile.mapping import Compared, constant_text
from consumers.reconcile.sides.base import Order, Side
from consumers.reconcile.sides.redis_nodes import Nodes
from consumers.reconcile.sides.redis_target import TargetReader
from consumers.reconcile.sides.spooled import SpooledSide
from consumers.reconcile.stores.base import Kept
from consumers.targets.redis_layout import Plan
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import ConfigError
from streamer.redis.rights import reconcile_rights

_SCORE = Held("float", "double precision")  # a zset's
_TEXT = Held("text", "text")  # what a constant is compared as


class RedisStore:
    """`flows`: all of the target's."""

    def __init__(self, url: str, flows: Sequence[Flow]) -> None:
        self._nodes = Nodes(url, reconcile_rights(flows, cluster=True))
        self._side: SpooledSide | None = None

    async def open(self) -> None:
        await self._nodes.open()

    async def close(self) -> None:
        await self._forget()
        await self._nodes.close()

    async def has(self, schema: str, name: str) -> bool:
        return True

    async def table(self, flow: Flow, record: SchemaRecord, schema: str, name: str) -> Kept:
        """The file of the table before is removed."""
        await self._forget()
        mapping.check_copy(flow, record)
        plan = Plan(flow, schema, name, map_columns(flow, record, None))
        return RedisKept(self, self._nodes, plan, record)

    def keeps(self, side: SpooledSide) -> None:
        """Until the next table is asked for."""
        self._side = side

    async def _forget(self) -> None:
        side, self._side = self._side, None
        if side is not None:
            await side.close()


class RedisKept:
    order: Order | None = None
    facts: fast.Server | str = "the target is Redis"

    def __init__(self, store: RedisStore, nodes: Nodes, plan: Plan, record: SchemaRecord) -> None:
        self._store = store
        self._nodes = nodes
        self._plan = plan
        self._record = record

    @property
    def there(self) -> mapping.Target:
        plan, columns = self._plan, self._plan.columns
        held: dict[str, Held | None] = {}
        for column in columns.columns:
            constant = column.column is None and constant_text(column.value) is not None
            held[column.name] = _TEXT if constant else None
        if columns.soft_delete is not None:
            held[columns.soft_delete] = None
        if not plan.has_members:
            return mapping.Target(held, typed=False)
        score = plan.flow.score
        only = f"is not in a {plan.layout}, which has the key, the member" + (
            " and the score" if score else ""
        )
        kept = {column.name for column in columns.columns if column.key}
        sourced = {column.name for column in columns.columns if column.column is not None}
        if score in sourced:
            assert score is not None
            kept.add(score)
            if score not in columns.key_columns:
                held[score] = _SCORE
        left_out = {column.name: only for column in columns.columns if column.name not in kept}
        needs = score if score in sourced and score is not None else ""
        # A small zset keeps a whole score as an integer, which has one zero.
        return mapping.Target(held, typed=False, signed_zero=False, left_out=left_out, needs=needs)

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> Side:
        if where:
            raise ConfigError(
                "--where is a condition in SQL, and a Redis target has none",
                where=self._nodes.place,
                fix="leave it out: all rows are compared",
            )
        kinds = {column.name: column.kind for column in self._record.columns}
        reader = TargetReader(
            self._nodes, self._plan, self._record, compared, {name: kinds[name] for name in compared.key}
        )
        side = SpooledSide(reader)
        self._store.keeps(side)
        return side
