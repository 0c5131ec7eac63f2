"""Postgres with pgvector as a target: rows as embedded chunks of their text, with metadata beside.

A Postgres target in everything but what a row becomes: session, checkpoints, floors, parks and gates are the
same. Texts are embedded outside of transactions, ahead of the batch where there is time for it; see
vectors_batch for what goes to the model, and vectors_model for what happens when it fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors

from consumers.targets import postgres_constraints as constraints
from consumers.targets import postgres_state as state
from consumers.targets.base import Batch, FlowError, Outcome, Refused, RowsRefused, TableChanges, Versions
from consumers.targets.postgres import PostgresTarget
from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_plans import Plan
from consumers.targets.vectors_batch import REFUSED_LIMIT, Counts, Known, embed, refused_of
from consumers.targets.vectors_index import Indexes
from consumers.targets.vectors_model import Model
from consumers.targets.vectors_plans import VectorPlan
from consumers.targets.vectors_statements import CHUNK
from consumers.targets.vectors_tables import ensure_chunks, other_models
from consumers.targets.vectors_texts import Texts
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.config import VectorTarget as Settings
from streamer.errors import ConfigError, TailraceError

AHEAD_LIMIT_S = (
    5.0  # after which no other call is made before the batch's turn: Kafka is not polled meanwhile
)

_EXTENSION = """SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'"""
_PATH = "SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident($1), false)"


class VectorTarget(PostgresTarget):
    """One session, and another one that looks ahead."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        flows: Sequence[Flow],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, group, flows)
        self._clock = clock
        self._limits = settings.embedding
        self._modules = settings.modules
        self._texts = {flow.name: Texts(flow) for flow in flows}
        self._models: dict[str, Model] = {}
        self._ahead: state.Connection | None = None
        self._indexes = Indexes(self._connect)
        self._counts = Counts()
        self._other_models: list[str] | None = None  # findings; None: to be looked for

    def details(self) -> Mapping[str, Any]:
        counts = {"texts_embedded": self._counts.embedded, "texts_reused": self._counts.reused}
        return {**super().details(), **counts}

    # Session

    async def _connect(self) -> state.Connection:
        connection = await super()._connect()
        try:
            schema = await self._ensure_extension(connection)
            await connection.execute(_PATH, (schema,))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _ensure_extension(self, connection: state.Connection) -> str:
        """The schema that it is in. Raises ConfigError."""
        for _ in range(2):
            row = await (await connection.execute(_EXTENSION, prepare=False)).fetchone()
            if row is not None:
                return str(row[0])
            try:
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", (state.LOCK,))
                    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector", prepare=False)
            except errors.InsufficientPrivilege as error:
                raise ConfigError(
                    f"the extension vector is missing, and {connection.info.user} may not make it",
                    where=self.place,
                    fix=f"as a superuser, in the database {connection.info.dbname}: CREATE EXTENSION vector;",
                ) from error
            except (errors.UndefinedFile, errors.FeatureNotSupported) as error:
                raise ConfigError(
                    "the server has no extension vector to make",
                    where=self.place,
                    fix="install pgvector on the server (the package is postgresql-NN-pgvector on Debian),"
                    " then: CREATE EXTENSION vector;",
                ) from error
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._indexes.stop()
        for model in self._models.values():
            model.close()
        await self._close_ahead()
        await super().close()

    async def _close_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            with suppress(psycopg.Error, OSError):
                await ahead.close()

    async def findings(self) -> list[str]:
        found = await super().findings()
        if self._other_models is None:
            async with self._statement() as connection:
                self._other_models = await other_models(connection, self._flows, self._texts)
        return [*self._other_models, *found, *self._indexes.findings]

    async def sweep(self, keep_s: float) -> None:
        await super().sweep(keep_s)
        self._other_models = None  # a person may have made the tables again
        async with self._statement() as connection:
            await self._indexes.look(connection)

    async def indexed(self) -> None:
        """Wait for indexes that are being made."""
        await self._indexes.built()

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        """Rows of the source, and not chunks."""
        if await super().count_rows(flow, schema, table) == 0:
            return 0
        query = f"SELECT count(*) FROM {quote(schema)}.{quote(table)} WHERE {CHUNK} = 0"
        async with self._statement() as connection:
            row = await (await connection.execute(query, prepare=False)).fetchone()
        return int(str(row[0])) if row else 0

    # Batches

    async def versions(self, batch: Batch) -> Versions | None:
        return None  # a row is several here

    async def prepare(self, batch: Batch) -> None:
        """What fails here, and what is left over, is done again by `apply`, which says why."""
        until_s = self._clock() + AHEAD_LIMIT_S

        def enough() -> bool:
            return self._clock() > until_s

        try:
            for changes in batch.tables:
                plans = self._vector_plans(changes, self._plans)
                if len(plans) == len(changes.schema_ids) and not enough():
                    if self._ahead is None or self._ahead.closed:
                        self._ahead = await self._connect()
                    await self._embed(changes, plans, self._ahead, enough)
        except (TailraceError, FlowError, psycopg.Error, OSError):
            await self._close_ahead()

    async def apply(self, batch: Batch) -> Outcome:
        outcome = await super().apply(batch)
        for changes in batch.tables:
            if any(write.change.op == "r" for fold in changes.folds for write in fold.rows.values()):
                self._indexes.loads(changes.schema, changes.table)
        return outcome

    async def _prepare(self, connection: state.Connection, batch: Batch) -> dict[tuple[str, str, str], Plan]:
        plans = await super()._prepare(connection, batch)
        refused: list[Refused] = []
        for plan in plans.values():
            assert isinstance(plan, VectorPlan)
            plan.forget()
        for changes in batch.tables:
            own = self._vector_plans(changes, plans)
            known = await self._embed(changes, own, connection)
            for plan in own.values():
                plan.bind(known.cuts, known.vectors, known.same)
            refused += refused_of(changes, own, known)
        if refused:
            raise RowsRefused(refused[:REFUSED_LIMIT], where=self.place)
        return plans

    def _vector_plans(
        self, changes: TableChanges, plans: Mapping[tuple[str, str, str], Plan]
    ) -> dict[str, VectorPlan]:
        found = {}
        for schema_id in changes.schema_ids:
            plan = plans.get((changes.schema, changes.table, schema_id))
            if isinstance(plan, VectorPlan):
                found[schema_id] = plan
        return found

    async def _embed(
        self,
        changes: TableChanges,
        plans: Mapping[str, VectorPlan],
        connection: state.Connection,
        enough: Callable[[], bool] = lambda: False,
    ) -> Known:
        flow = self._flows[changes.flow]
        return await embed(changes, plans, connection, flow, self._model(flow), self._counts, enough)

    def _model(self, flow: Flow) -> Model:
        """Found when it is needed: the commands that look at a target need none. Raises FlowError."""
        if flow.name not in self._models:
            try:
                self._models[flow.name] = Model(flow, self._limits, self._modules, clock=self._clock)
            except ConfigError as error:
                raise FlowError(flow.name, error) from error
        return self._models[flow.name]

    async def _plan(
        self,
        connection: state.Connection,
        place: tuple[str, str],
        record: SchemaRecord,
        flow: Flow,
        topic: str,
        *,
        remake: bool,
    ) -> Plan:
        texts = self._texts[flow.name]
        fitted = await ensure_chunks(connection, *place, record, flow, texts, topic=topic, remake=remake)
        if not self._silent:
            await constraints.ensure(connection, fitted.table)
        return VectorPlan(fitted, flow, texts, record, silent=self._silent)
