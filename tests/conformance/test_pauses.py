"""A paused flow, in every kind of target: it writes nothing, it loses nothing, and no process forgets it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from consumers.apply.pauses import Pause, Pauses, paused_in
from consumers.targets.base import Gate, Target
from streamer.config import Config
from tests.conformance.adapters.base import Adapter, Row
from tests.conformance.sessions import session
from tests.harness.feeder import POLL_S, WAIT_S, Feeder, Running, applying

COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]
ANN = Pause("mirror", True, "ann@host", "a table is mended: ask her", 500)


async def test_a_pause_is_kept_and_no_decision_of_a_gate_is_of_it(adapter: Adapter) -> None:
    async with session(adapter) as s, s.another() as other:
        held = Gate("mirror", "shop.public.people", "deletes", "held", 40, 100, 500, 600)
        await s.target.hold(held)
        await s.target.hold(ANN.gate)
        assert paused_in(await other.target.gates(), "mirror") == ANN
        assert paused_in(await other.target.gates(), "other") is None

        decided = await other.target.decide("mirror", "approved", "eve@host", 900)
        assert [gate.topic for gate in decided] == [held.topic]
        assert paused_in(await s.target.gates(), "mirror") == ANN
        pauses = Pauses(["mirror"], s.target)
        await pauses.load()
        assert pauses.out == {"mirror"}

        await other.target.hold(Pause("mirror", False, "eve@host", "", 700).gate)
        assert paused_in(await s.target.gates(), "mirror") is None
        await pauses.poll()
        assert pauses.resumed() == {"mirror"}


class Copy:
    """Two flows to one target, with their processes."""

    def __init__(self, adapter: Adapter, feeder: Feeder) -> None:
        self.adapter = adapter
        self.feeder = feeder
        adapter.name, adapter.brokers = feeder.name, feeder.brokers
        flows = {name: {"from": f"{feeder.source}.public.{name}"} for name in ("people", "things")}
        self.config: Config = adapter.config(flows, source=feeder.source)

    async def rows(self, table: str) -> list[Row]:
        return sorted(await self.adapter.read_rows(table), key=lambda row: int(row["id"]))

    async def until(self, table: str, names: dict[int, str]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while {int(row["id"]): row["name"] for row in await self.rows(table)} != names:
            assert time.monotonic() < deadline_s, f"{table}: {await self.rows(table)} is not {names}"
            await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Target]:
        target = self.adapter.target(self.config, f"{self.feeder.name}.copy")
        await target.open()
        try:
            yield target
        finally:
            await target.close()

    async def wish(self, *, paused: bool) -> None:
        async with self.session() as target:
            await target.hold(Pause("people", paused, "ann@host", "", time.time_ns() // 1000).gate)


def paused(run: Running) -> bool:
    flow: dict[str, Any] = run.flow("people")
    return bool(flow.get("state") == "paused" and flow["lag_records"])


@pytest.mark.thorough
async def test_a_paused_flow_writes_nothing_and_loses_nothing(adapter: Adapter, feeder: Feeder) -> None:
    copy = Copy(adapter, feeder)
    people, things = [await feeder.table(name, COLUMNS) for name in ("people", "things")]
    names = dict.fromkeys(range(20), "a")
    for number in names:
        people.create({"id": number, "name": "a", "note": None}, 100, number)
    things.create({"id": 1, "name": "t0", "note": None}, 100, 90)
    await feeder.flush()
    async with applying(copy.config) as run:
        await copy.until("people", names)
        await copy.wish(paused=True)
        await run.until(lambda: run.flow("people").get("state") == "paused", "paused")
        before = dict(names)
        people.update({"id": 3, "name": "b", "note": None}, 200)
        people.delete({"id": 4, "name": None, "note": None}, 200, 1)
        things.update({"id": 1, "name": "t1", "note": None}, 200, 2)
        names = {**names, 3: "b"}
        del names[4]
        await feeder.flush()
        await copy.until("things", {1: "t1"})
        await run.until(lambda: paused(run), "its lag is told")
        await copy.until("people", before)
    people.create({"id": 30, "name": "c", "note": None}, 300)
    things.update({"id": 1, "name": "t2", "note": None}, 300, 1)
    names[30] = "c"
    await feeder.flush()
    async with applying(copy.config) as run:
        await copy.until("things", {1: "t2"})
        await run.until(lambda: paused(run), "the next process knows it")
        await copy.until("people", before)
        await copy.wish(paused=False)
        await copy.until("people", names)
        await run.until(lambda: run.flow("people")["state"] == "streaming", "streaming")
