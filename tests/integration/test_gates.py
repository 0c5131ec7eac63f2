"""Gates, on real servers: what would empty a copy waits for a person, and nothing else does."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.apply.gates import Gates, Subject
from consumers.commands.gates import LATELY_S, decide, decide_held
from consumers.commands.parked import opened
from consumers.targets.base import Gate
from streamer.config import Config, load
from tests.harness.feeder import WAIT_S, Feeder, Running, Table, applying
from tests.harness.pipeline import Pipeline

COLUMNS = [("id", "integer", "number"), ("name", "text", "text")]
ROWS = 400
COUNT = "SELECT count(*) FROM mirror.people"
REPO = Path(__file__).parents[2]


class Scene:
    """Rows of `people` and `things` in the target; `people` holds truncates, and deletes above 10%."""

    def __init__(self, feeder: Feeder, url: str, folder: Path) -> None:
        self.feeder = feeder
        self.url = url
        self.target = f"{feeder.name}_copy"
        self.path = folder / "tailrace.yaml"
        self.people: Table
        self.things: Table

    async def prepare(self, rows: int = ROWS, partitions: int = 4) -> None:
        source = self.feeder.source
        gates = {"truncate": "hold", "hold_deletes_above": "10%"}
        config = {
            "name": self.feeder.name,
            "kafka": {"brokers": self.feeder.brokers},
            "sources": {
                source: {
                    "kind": "postgres",
                    "url": "postgresql://nobody@localhost/none",
                    "tables": {"public.*": {}},
                }
            },
            "targets": {self.target: {"kind": "postgres", "url": self.url}},
            "flows": {
                "customers": {"from": f"{source}.public.p*", "to": f"{self.target}.mirror", **gates},
                "things": {"from": f"{source}.public.things", "to": f"{self.target}.mirror"},
            },
        }
        self.path.write_text(yaml.safe_dump(config))
        self.people = await self.feeder.table("people", COLUMNS, partitions=partitions)
        self.things = await self.feeder.table("things", COLUMNS, partitions=1)
        for number in range(rows):
            self.people.create({"id": number, "name": "a"}, 100, number)
        self.things.create({"id": 1, "name": "t"}, 100, rows)
        await self.feeder.flush()

    @property
    def config(self) -> Config:
        return load(self.path, environ={})

    def applying(self) -> Any:
        return applying(self.config, target=self.target)

    async def copied(self, run: Running, rows: int = ROWS) -> None:
        await run.rows(self.url, COUNT, [(rows,)])

    async def count(self) -> int:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            row = await (await connection.execute(COUNT)).fetchone()
        assert row is not None
        return int(row[0])

    async def others_go_on(self, run: Running, lsn: int) -> None:
        """The other flow, to its end."""
        self.things.update({"id": 1, "name": f"at {lsn}"}, lsn)
        await self.feeder.flush()
        await run.rows(self.url, "SELECT name FROM mirror.things", [(f"at {lsn}",)])

    async def command(self, *words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "consumers", *words, "-c", str(self.path)),
            cwd=REPO,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def decide(self, state: str) -> None:
        """As the command does it."""
        (gate,) = await decide_held(self.config, "customers", state)
        assert gate.state == state

    async def letters(self, count: int) -> list[dict[str, Any]]:
        """The first dead letters, once there are so many: rows of other partitions come before them."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.feeder.brokers, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([TopicPartition(f"{self.target}.dead_letters", 0)])
            found: list[dict[str, Any]] = []
            async with asyncio.timeout(WAIT_S):
                while len(found) < count:
                    for records in (await consumer.getmany(timeout_ms=100)).values():
                        found += [orjson.loads(record.value) for record in records]
            return found
        finally:
            await consumer.stop()


@pytest.fixture
async def scene(kafka: str, kafka_name: str, target_database: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield Scene(feeder, target_database, tmp_path)


async def held(run: Running, text: str = "") -> dict[str, Any]:
    """Until the flow says that it is held, for a reason that holds these words: it is in the target then."""
    await run.until(
        lambda: run.flow("customers").get("state") == "held" and text in run.flow("customers")["reason"],
        f"held: {text}",
    )
    (gate,) = run.flow("customers")["held"]
    found: dict[str, Any] = gate
    return found


def streaming(run: Running) -> Callable[[], bool]:
    return lambda: run.flow("customers").get("state") == "streaming"


async def test_a_truncate_waits_and_is_approved(scene: Scene) -> None:
    """What came before it is applied; other topics of the flow and other flows go on."""
    await scene.prepare()
    pets = await scene.feeder.table("pets", COLUMNS, partitions=1)
    async with scene.applying() as run:
        await scene.copied(run)
        scene.people.update({"id": 1, "name": "just before"}, 200)
        scene.people.truncate(210)
        for number in range(20):
            scene.people.create({"id": 1000 + number, "name": "after"}, 220, number)
        await scene.feeder.flush()
        gate = await held(run, f"a truncate: {ROWS} of ")  # rows that came after it may be there already
        assert " rows of public.people would be deleted; " in run.flow("customers")["reason"]
        assert (
            "`tailrace approve customers` or `tailrace refuse customers`" in run.flow("customers")["reason"]
        )
        assert (gate["kind"], gate["rows"]) == ("truncate", ROWS)
        assert ROWS <= gate["table_rows"] <= ROWS + 20
        await scene.others_go_on(run, 300)
        pets.create({"id": 1, "name": "p"}, 310)
        await scene.feeder.flush()
        await run.rows(scene.url, "SELECT name FROM mirror.pets", [("p",)])
        await run.rows(scene.url, "SELECT name FROM mirror.people WHERE id = 1", [("just before",)])
        assert await scene.count() >= ROWS
        assert run.status.record.state == "streaming"
        await run.until(lambda: run.flow("customers")["lag_records"] > 0, "lag of what waits")

        code, out = await scene.command("approve", "customers", "--json")
        assert code == 0, out
        (decided,) = orjson.loads(out)["gates"]
        assert (decided["state"], "@" in decided["decided_by"]) == ("approved", True)
        await run.rows(scene.url, "SELECT count(*), min(name) FROM mirror.people", [(20, "after")])
        await run.until(streaming(run), "streaming")
        await run.until(lambda: run.flow("customers")["lag_records"] == 0, "no lag")
        scene.people.create({"id": 1, "name": "goes on"}, 400)
        await scene.feeder.flush()
        await scene.copied(run, 21)


async def test_what_came_before_it_is_applied_though_the_keeper_sees_the_hold_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold is known before its batch is made: the batch goes whole."""
    judge, poll, polled = Gates.judge, Gates.poll, asyncio.Event()

    async def then_polled(self: Gates, *args: Any) -> dict[int, int]:
        ends = await judge(self, *args)
        if ends:
            polled.clear()
            await polled.wait()
        return ends

    async def and_say(self: Gates) -> set[Subject]:
        """As one that began right before the hold."""
        changed = await poll(self)
        polled.set()
        return changed | {(gate.flow, gate.topic) for gate in self.held()}

    monkeypatch.setattr(Gates, "judge", then_polled)
    monkeypatch.setattr(Gates, "poll", and_say)
    await scene.prepare(partitions=1)
    async with scene.applying() as run:
        await scene.copied(run)
        scene.people.update({"id": 1, "name": "just before"}, 200)
        scene.people.truncate(210)
        await scene.feeder.flush()
        await held(run)
        await run.rows(scene.url, "SELECT name FROM mirror.people WHERE id = 1", [("just before",)])


async def test_a_truncate_is_refused_with_a_record(scene: Scene) -> None:
    """It raises no floor: older rows stay, and older ones that come later are written."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        scene.people.truncate(210)
        scene.people.create({"id": 1000, "name": "after"}, 220)
        scene.people.read({"id": 1001, "name": "older"}, 205)
        await scene.feeder.flush()
        await held(run)
        await scene.decide("refused")
        await scene.copied(run, ROWS + 2)
        await run.until(streaming(run), "streaming")
        (letter,) = await scene.letters(1)
        assert (letter["action"], letter["reason"]["code"], letter["flow"]) == (
            "refused",
            "truncate",
            "customers",
        )
        assert letter["payload"]["op"] == "t"
        assert "refused by" in letter["reason"]["message"]
        await run.stop()
    async with scene.applying() as run:
        scene.people.create({"id": 1002, "name": "goes on"}, 400)
        await scene.feeder.flush()
        await scene.copied(run, ROWS + 3)
        scene.people.truncate(500)
        await scene.feeder.flush()
        await held(run)
        assert await scene.count() == ROWS + 3


async def delete_many(scene: Scene, numbers: range, lsn: int, sweep: int | None = None) -> None:
    for ordinal, number in enumerate(numbers):
        scene.people.delete({"id": number}, lsn, ordinal, sweep=sweep)
    await scene.feeder.flush()


async def test_a_mass_delete_is_held_before_it_empties(scene: Scene) -> None:
    """The share over the window: usual deletes pass and count, what crosses it waits."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        await delete_many(scene, range(30), 200)
        await scene.copied(run, ROWS - 30)
        await delete_many(scene, range(30, ROWS), 210)
        gate = await held(run)
        assert gate["kind"] == "deletes"
        assert gate["rows"] > ROWS * 0.1
        assert gate["table_rows"] == ROWS
        assert await scene.count() >= ROWS * 0.9
        await scene.others_go_on(run, 300)
        assert await scene.count() >= ROWS * 0.9
        await scene.decide("approved")
        await scene.copied(run, 0)
        await run.until(streaming(run), "streaming")
        for number in range(ROWS):
            scene.people.create({"id": number, "name": "new"}, 400, number)
        await scene.feeder.flush()
        await scene.copied(run, ROWS)
        await delete_many(scene, range(9), 410)
        await scene.copied(run, ROWS - 9)
        assert run.flow("customers")["state"] == "streaming", "approved deletes were counted"


async def test_refused_deletes_leave_the_rows(scene: Scene) -> None:
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        await delete_many(scene, range(ROWS), 200)
        await held(run)
        left = await scene.count()
        await scene.decide("refused")
        scene.people.create({"id": 5000, "name": "goes on"}, 300)
        await scene.feeder.flush()
        await scene.copied(run, left + 1)
        letters = await scene.letters(left)
        assert len(letters) == left
        assert {letter["action"] for letter in letters} == {"refused"}
        assert {letter["payload"]["op"] for letter in letters} == {"d"}


async def test_the_first_delete_of_a_sweep_is_enough(scene: Scene) -> None:
    """FLUSHALL of a cache: nothing goes before it is approved; the rest of the sweep goes with it."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        await delete_many(scene, range(5), 200, sweep=ROWS)
        gate = await held(run, f"{ROWS} of {ROWS} rows of public.people would be deleted")
        assert gate["rows"] == ROWS
        assert await scene.count() == ROWS
        await scene.decide("approved")
        await scene.copied(run, ROWS - 5)
        await delete_many(scene, range(5, ROWS), 210, sweep=ROWS)
        await scene.copied(run, 0)


async def reset(scene: Scene, left: range, *, epoch: int = 2) -> None:
    """A new copy of so many rows, and its floor; a change of the new epoch behind it in each partition."""
    for number in left:
        scene.people.read({"id": number, "name": "copied"}, 300, epoch=epoch)
    await scene.feeder.flush()
    scene.people.floor(epoch)
    await scene.feeder.flush()


async def test_a_reset_of_an_emptied_source_waits(scene: Scene) -> None:
    """The copy is approved, then another one, of rows that are all there, passes by itself."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        await reset(scene, range(40))
        gate = await held(
            run, f"the new copy of the source lacks {ROWS - 40} of {ROWS} rows of public.people"
        )
        assert (gate["kind"], gate["rows"], gate["table_rows"]) == ("floor", ROWS - 40, ROWS)
        assert run.flow("customers")["held_rows"] == ROWS - 40
        await run.rows(scene.url, f"{COUNT} WHERE name = 'copied'", [(40,)])
        assert await scene.count() == ROWS
        await scene.others_go_on(run, 300)
        await scene.decide("approved")
        await scene.copied(run, 40)
        await run.until(streaming(run), "streaming")
        await reset(scene, range(38), epoch=3)
        await scene.copied(run, 38)
        await run.until(lambda: run.flow("customers")["lag_records"] == 0, "no lag")


@pytest.mark.thorough
async def test_a_refused_reset_leaves_its_rows(scene: Scene) -> None:
    """It is stopped while held, refused while nobody runs, and goes on without the floor."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        await reset(scene, range(0))
        await held(run)
        await run.stop()
    await scene.decide("refused")
    async with scene.applying() as run:
        scene.people.create({"id": 5000, "name": "goes on"}, 400, epoch=2)
        await scene.feeder.flush()
        await scene.copied(run, ROWS + 1)
        await run.until(lambda: run.flow("customers").get("lag_records") == 0, "no lag")
        (letter,) = await scene.letters(1)
        assert (letter["action"], letter["reason"]["code"], letter["payload"]["op"]) == (
            "refused",
            "floor",
            "m",
        )
        assert await scene.count() == ROWS + 1


async def test_a_hold_and_its_decision_survive_restarts(scene: Scene) -> None:
    """Nothing of a gate is in the process: it is stopped while held, and decided while nobody runs."""
    await scene.prepare()
    async with scene.applying() as run:
        await scene.copied(run)
        scene.people.truncate(210)
        await scene.feeder.flush()
        first = await held(run)
        await run.stop()
    async with scene.applying() as run:
        again = await held(run)
        assert again["since_us"] == first["since_us"]
        await scene.others_go_on(run, 300)
        assert await scene.count() == ROWS
        await run.stop()
    await scene.decide("approved")
    async with scene.applying() as run:
        await scene.copied(run, 0)
        await run.until(streaming(run), "streaming")


async def test_two_processes_hold_and_go_on_together(scene: Scene) -> None:
    """Each has half of the partitions; a truncate is in one of them."""
    await scene.prepare()
    async with AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(scene.applying()) for _ in range(2)]
        await scene.copied(runs[0])
        for run in runs:
            await run.until(lambda run=run: len(partitions_of(run)) == 2, "half of the partitions")
        await delete_many(scene, range(ROWS), 200)
        for run in runs:
            await held(run)
        left = await scene.count()
        assert left >= ROWS * 0.8, "each process may be a batch ahead of the other's count"
        for number in range(40):
            scene.people.create({"id": 1000 + number, "name": "after"}, 220, number)
        await scene.feeder.flush()
        await scene.others_go_on(runs[0], 300)
        assert await scene.count() == left
        await scene.decide("approved")
        await scene.copied(runs[0], 40)
        for run in runs:
            await run.until(streaming(run), "streaming")


def partitions_of(run: Running) -> list[Any]:
    found = run.flow("customers").get("partitions") or []
    return [place for place in found if place["topic"].endswith("people")]


@pytest.mark.thorough
async def test_the_commands(scene: Scene) -> None:
    await scene.prepare(rows=1)
    async with scene.applying() as run:
        await scene.copied(run, 1)
        code, out = await scene.command("approve", "customers")
        assert (code, "customers holds nothing" in out) == (1, True)
        code, out = await scene.command("refuse", "custommers")
        assert code == 64
        assert "did you mean 'customers'?" in out
        scene.people.truncate(210)
        await scene.feeder.flush()
        await held(run)
        code, out = await scene.command("approve", "customers")
        assert code == 0, out
        assert "a truncate: 1 of 1 rows of public.people would be deleted; it passes" in out


def test_who_comes_late_is_told_who_has_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(
        """
name: acme
sources: {shop: {kind: postgres, url: "postgresql://u@localhost/none", tables: {"public.*": {}}}}
targets: {copy: {kind: sql, url: "sqlite:///copy.db"}}
flows: {mirror: {from: "shop.public.*", to: copy}}
"""
    )
    now_us = time.time_ns() // 1000

    async def decided(at_us: int) -> None:
        async with opened(load(path), "copy") as target:
            await target.hold(Gate("mirror", "shop.public.people", "deletes", "held", 50, 100, at_us))
            await target.decide("mirror", "refused", "ann@host", at_us)

    monkeypatch.setattr("consumers.commands.gates.NOTED_S", 0)
    asyncio.run(decided(now_us))
    assert decide(path, "mirror", "approved", as_json=False) == 1
    out = capsys.readouterr().out
    assert "flow mirror holds nothing" in out
    assert "shop.public.people of flow mirror was refused by ann@host at 2" in out
    assert ": at least 50 of 100 rows of public.people would be deleted" in out
    assert decide(path, "mirror", "approved", as_json=True) == 1
    told = orjson.loads(capsys.readouterr().out)
    assert (told["gates"], told["decided_before"][0]["decided_by"]) == ([], "ann@host")
    asyncio.run(decided(now_us - round((LATELY_S + 60) * 1e6)))
    decide(path, "mirror", "approved", as_json=False)
    assert "ann@host" not in capsys.readouterr().out, "of long ago"


@pytest.mark.thorough
async def test_kill_9_while_held_with_a_real_source(
    database: str, target_database: str, kafka: str, kafka_name: str, tmp_path: Path
) -> None:
    """TRUNCATE in Postgres, real processes; `status` says HELD; killed, started, refused, started."""
    flows = {"customers": {"from": f"{kafka_name}_shop.public.*", "to": "copy.mirror", "truncate": "hold"}}
    async with (
        Pipeline(
            tmp_path,
            source_url=database,
            target_url=target_database,
            brokers=kafka,
            name=kafka_name,
            flows=flows,
        ) as pipeline,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as source,
    ):
        await source.execute("CREATE TABLE customers (id int PRIMARY KEY, name text)")
        await source.execute("INSERT INTO customers SELECT n, 'a' FROM generate_series(1, 1000) n")
        _, apply = await pipeline.start_both()
        await source.execute("TRUNCATE customers")
        await source.execute("INSERT INTO customers VALUES (1001, 'after')")

        async def says_held() -> bool:
            flows = [r.detail.get("flows", {}) for r in await pipeline.status("apply") if r.pid == apply.pid]
            return any(flow["customers"]["state"] == "held" for flow in flows if flow)

        await pipeline.until("apply says that it holds", says_held, WAIT_S)
        code, out = await pipeline.run("status", "--json")
        (flow,) = orjson.loads(out)["flows"]
        assert (code, flow["state"], flow["held"][0]["rows"]) == (1, "HELD", 1000)
        assert flow["reason"].startswith("a truncate: 1,000 of 1,00")
        apply.kill()
        assert await pipeline.target_value("SELECT count(*) FROM mirror.customers WHERE name = 'a'") == 1000
        apply = pipeline.start("apply")
        await pipeline.until("it says so again", says_held, WAIT_S)
        code, out = await pipeline.run("approve", "customers")
        assert code == 0, out
        apply.kill()
        pipeline.start("apply")
        await pipeline.equal()
        assert await pipeline.target_value("SELECT name FROM mirror.customers") == "after"
