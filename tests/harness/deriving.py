"""A pipeline with processors in it: capture, workers, apply, and the derived tables beside their queries."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from aiokafka import errors as kafka
from orjson import dumps
from psycopg import sql
from psycopg.rows import dict_row

from consumers.demo.verdict import TableName
from consumers.processors.operations import wait_through
from streamer.config import load
from streamer.errors import TailraceError
from tests.harness.pipeline import CATCH_UP_S, POLL_S, TARGET_SCHEMA, Child, Pipeline
from tests.harness.processing import records_of
from tests.harness.standing import Standing
from tests.processors.derivations import HELPERS

SAMPLES = 3
SAMPLE_CHARS = 250
WORKING_S = 60.0
FENCE_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one derived table: rows of the query that it lacks, and rows that the query does not have."""

    table: TableName
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def __str__(self) -> str:
        lacks, has = len(self.missing), len(self.extra)
        shown = [f"  - {row[:SAMPLE_CHARS]}" for row in self.missing[:SAMPLES]] + [
            f"  + {row[:SAMPLE_CHARS]}" for row in self.extra[:SAMPLES]
        ]
        return "\n".join([f"{self.table}: {lacks} missing, {has} extra", *shown])


class Deriving(Pipeline):
    """`helpers`: names in tests.processors.derivations, each a processor with a flow of its own."""

    def __init__(self, folder: Path, *, helpers: Sequence[str], **servers: Any) -> None:
        super().__init__(folder, **servers)
        self.helpers = tuple(helpers)
        processors, flows = {}, {}
        for name in helpers:
            helper = HELPERS[name]
            processors[self.processor(name)] = {
                "agent": f"derivations:{name}",
                "in": [f"{self.source}.public.{table}" for table in helper.inputs],
                "out": self.out(name),
                **({"key": list(helper.key)} if helper.key else {}),
            }
            if helper.plain:
                continue
            routed = "" not in helper.queries
            to = name if routed else f"{TARGET_SCHEMA}.{name}"
            flows[name] = {"from": self.out(name) + (".*" if routed else ""), "to": f"copy.{to}"}
        self.config |= {"processors": processors, "flows": flows}
        self.write_config()
        text = f"from tests.processors.derivations import made\n\nglobals().update(made({self.source!r}))\n"
        (folder / "derivations.py").write_text(text)
        self._helper_of: dict[Child, str] = {}
        self._keeper: asyncio.Task[None] | None = None
        self.gave_up: list[Child] = []  # workers that ended by themselves, with an error

    def processor(self, helper: str) -> str:
        return f"{helper}_{self.name}"

    def out(self, helper: str) -> str:
        return f"{self.name}_{helper}"

    def start_worker(self, helper: str) -> Child:
        child = self.start("process", self.processor(helper))
        self._helper_of[child] = helper
        return child

    @property
    def workers(self) -> list[Child]:
        return self.running("process")

    def spare_workers(self) -> list[Child]:
        """Those of processors that have more than one."""
        counts = Counter(self._helper_of.values())
        return [c for c, helper in self._helper_of.items() if c.running and counts[helper] > 1]

    def supervise(self) -> None:
        """From here on a worker that ends is started again, unless it was told to stop."""
        self._keeper = asyncio.create_task(self._keep(), name="keeper of workers")

    async def _keep(self) -> None:
        while True:
            for child in [c for c in self._helper_of if not c.running]:
                helper = self._helper_of.pop(child)
                if not child.killed and child.popen.returncode:
                    self.gave_up.append(child)
                if child.killed or child.popen.returncode:
                    self.start_worker(helper)
            await asyncio.sleep(POLL_S)

    def dead(self) -> list[Child]:
        found = super().dead()
        return found if self._keeper is None else [child for child in found if child.role != "process"]

    async def __aexit__(self, *error: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await super().__aexit__(*error)

    def start_all(self) -> None:
        self.start("capture")
        for helper in self.helpers:
            self.start_worker(helper)
        self.start("apply")

    async def working(self, *children: Child) -> None:
        """Each has said in its heartbeats that it has tasks."""

        async def check() -> bool:
            records = await self.status("process")
            at_work = {r.pid for r in records if r.detail.get("tasks") and not r.ended}
            return {child.pid for child in children} <= at_work

        await self.until("the workers have tasks", check, WORKING_S)

    async def derived(self, timeout_s: float = CATCH_UP_S) -> None:
        """All that the source has now has come out of every processor (H19)."""
        await self.captured(timeout_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                for helper in self.helpers:
                    group.create_task(self._through(helper), name=f"fence of {helper}")
        except TimeoutError:
            stand = await self.standing(self.helpers)
            raise AssertionError(f"not derived within {timeout_s:.0f} s\n{stand}\n{self.tails()}") from None

    async def _through(self, helper: str) -> None:
        config = load(self.config_path)
        while True:
            try:
                await wait_through(config, self.processor(helper), poll_s=FENCE_POLL_S)
                return
            except TailraceError:
                await asyncio.sleep(POLL_S)  # Kafka, or a topic, is not there yet

    async def equal_to_queries(self, timeout_s: float = CATCH_UP_S, *, fenced: bool = False) -> None:
        """`fenced`: what comes after is compared, and nothing that only passes by."""
        await (self.derived(timeout_s) if fenced else self.captured(timeout_s=timeout_s))
        until_s = time.monotonic() + timeout_s
        while differences := await self.differences():
            if self.dead() or time.monotonic() > until_s:
                stand = await self.standing(dict.fromkeys(self._helper(d.table) for d in differences))
                raise AssertionError("\n".join([*map(str, differences), stand, self.tails()]))
            await asyncio.sleep(POLL_S)

    async def standing(self, helpers: Iterable[str]) -> str:
        """What would explain that rows of these are missing; what cannot be found out is said, too."""
        shop = f"{self.source}.public"
        inputs = {name: tuple(f"{shop}.{table}" for table in HELPERS[name].inputs) for name in helpers}
        processors = {self.processor(name): (self.out(name), topics) for name, topics in inputs.items()}
        try:
            return await Standing(self.brokers, self.name, self.target_url).of(processors)
        except (TailraceError, kafka.KafkaError, psycopg.Error, OSError) as error:
            return f"where it stands is not known: {error!r}"

    @staticmethod
    def _helper(table: TableName) -> str:
        return table.table if table.schema == TARGET_SCHEMA else table.schema

    async def differences(self) -> list[Difference]:
        found = []
        async with (
            await psycopg.AsyncConnection.connect(self.source_url, autocommit=True) as source,
            await psycopg.AsyncConnection.connect(self.target_url, autocommit=True) as target,
        ):
            for helper in self.helpers:
                if HELPERS[helper].plain:
                    found += await self._plain(helper, source)
                    continue
                for table, query in HELPERS[helper].queries.items():
                    schema, name = (helper, table) if table else (TARGET_SCHEMA, helper)
                    difference = await compared(source, target, query, TableName(schema, name))
                    if difference is not None:
                        found.append(difference)
        return found

    async def _plain(self, helper: str, source: psycopg.AsyncConnection) -> list[Difference]:
        """Of what flatten or an outbox sends: the rows that its keys fold to, or each message, once."""
        found = []
        for table, query in HELPERS[helper].queries.items():
            records = await records_of(self.brokers, self.out(helper) + (table and f".{table}"))
            cursor = source.cursor(row_factory=dict_row)
            wanted = [dumps(row).decode() for row in await (await cursor.execute(query.encode())).fetchall()]
            if table:
                there = [dumps({"key": text(r.key), "value": text(r.value)}).decode() for r in records]
            else:
                rows = {record.key: text(record.value) for record in records}
                there = [row for row in rows.values() if row is not None]
            missing, extra = Counter(wanted) - Counter(there), Counter(there) - Counter(wanted)
            if missing or extra:
                name = TableName(TARGET_SCHEMA, helper)
                found.append(Difference(name, tuple(missing.elements()), tuple(extra.elements())))
        return found


def text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


async def compared(
    source: psycopg.AsyncConnection, target: psycopg.AsyncConnection, query: str, table: TableName
) -> Difference | None:
    """As texts, so that 1.0 is not 1.00."""
    for connection in (source, target):
        await connection.execute("SET TimeZone TO 'UTC'")
    described = await source.execute(f"SELECT * FROM ({query}) q LIMIT 0".encode())
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in described.description or ())
    wanted = [
        row[0] for row in await (await source.execute(f"SELECT q::text FROM ({query}) q".encode())).fetchall()
    ]
    statement = sql.SQL("SELECT q::text FROM (SELECT {} FROM {}) q").format(
        columns, sql.Identifier(table.schema, table.table)
    )
    there: list[str] = []
    try:
        there = [row[0] for row in await (await target.execute(statement)).fetchall()]
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        if wanted:
            there = [f"{error.diag.message_primary}"]
    missing, extra = list(wanted), []
    for row in there:
        if row in missing:
            missing.remove(row)
        else:
            extra.append(row)
    return Difference(table, tuple(missing), tuple(extra)) if missing or extra else None
