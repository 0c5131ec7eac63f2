"""`tailrace replay`: a flow goes back in the log while it is applied, and no row ever goes back in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from redis.asyncio import Redis

from consumers.commands.gates import decide_held
from consumers.commands.replay import Wish
from consumers.commands.replay import replay as command
from streamer.config import parse
from streamer.errors import ConfigError
from streamer.sandbox import ValkeyServer
from tests.harness.capture import until
from tests.harness.feeder import Feeder, Running, Table, applying, config_text
from tests.harness.people import COLUMNS, IDS, drop, filled, make
from tests.harness.redis_target import redis_config_text
from tests.harness.tiers import corners

VERSIONS = "SELECT id, name FROM mirror.people"
ROUNDS = 12
SIDE = ", version: side"
SMALL = "{rows: 20}"  # a batch has few versions of a row, so that what lies between them would be seen
CASES = [(1, SIDE), (1, ""), (2, ""), (2, SIDE)]


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


class Operator:
    """Runs the command on a config file of the test's, as a person beside the processes would."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "tailrace.yaml"
        self.path.write_text(text)
        self.config = parse(text, self.path, environ={})

    async def replay(self, capfd: pytest.CaptureFixture[str], **wish: Any) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = await asyncio.to_thread(command, self.path, Wish("mirror", **wish), as_json=True)
        return code, orjson.loads(capfd.readouterr().out)


def operator(folder: Path, feeder: Feeder, url: str, more: str = "", batch: str = "{}") -> Operator:
    text = config_text(feeder, url, batch=batch)
    return Operator(folder, text.replace("to: copy.mirror}", f"to: copy.mirror{more}}}"))


def measured(run: Running) -> dict[str, float] | None:
    found: dict[str, float] | None = run.flow()["latency_ms"]
    return found


def replays(run: Running) -> list[str]:
    flows = run.status.record.detail.get("flows", {}).values()
    return [
        flow["reason"] for flow in flows if flow["state"] == "rewound" and "replayed as" in flow["reason"]
    ]


async def ends(url: str) -> dict[int, int]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows = await connection.execute("SELECT partition, next_offset FROM _tailrace.checkpoints")
        return {int(p): int(at) for p, at in await rows.fetchall()}


async def execute(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement.encode())


class Poller:
    """A reader of the target who looks all the time, and notes every row that it sees go back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen: dict[int, int] = {}
        self.looks = 0
        self.wrong: list[str] = []

    async def run(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            while True:
                rows = dict(await (await connection.execute(VERSIONS)).fetchall())
                for id_, before in self._seen.items():
                    if id_ not in rows:
                        if id_ < 1000:  # the others are deleted
                            self.wrong.append(f"{id_} is gone")
                    elif int(rows[id_]) < before:
                        self.wrong.append(f"{id_} went from {before} back to {rows[id_]}")
                for id_ in rows.keys() - self._seen.keys():
                    if self.looks and id_ >= 1000:
                        self.wrong.append(f"{id_}, which was deleted, is back")
                self._seen.update({id_: int(name) for id_, name in rows.items()})
                self.looks += 1


@asynccontextmanager
async def polled(url: str) -> AsyncIterator[Poller]:
    poller = Poller(url)
    task = asyncio.create_task(poller.run(), name="poller")
    try:
        yield poller
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def versions(feeder: Feeder, table: Table, *, partitions: int = 2) -> None:
    """Every row in many versions, and rows that are made and deleted."""
    for lsn in range(100, 100 + ROUNDS):
        make(table, *range(40), lsn=lsn, name=str(lsn))
        make(table, *range(1000 + lsn * 10, 1010 + lsn * 10), lsn=lsn, name=str(lsn))
        for n in range(1000 + lsn * 10, 1010 + lsn * 10):
            drop(table, n, lsn + 1)
        await feeder.flush()


@pytest.mark.parametrize(("processes", "more"), corners(CASES, 2))
async def test_a_replay_of_everything_under_load_takes_no_row_back(
    processes: int,
    more: str,
    feeder: Feeder,
    target_database: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Running processes notice it by themselves; a reader polls all the while; deleted rows stay deleted."""
    person = operator(tmp_path, feeder, target_database, more, SMALL)
    table = await feeder.table("people", COLUMNS)
    await versions(feeder, table)
    last = 100 + ROUNDS - 1
    async with applying(person.config) as run:
        await run.rows(target_database, f"{VERSIONS} ORDER BY 1", [(n, str(last)) for n in range(40)])
        await run.settled(feeder)
        async with asyncio.TaskGroup() as group, polled(target_database) as poller:
            other = applying(person.config) if processes == 2 else None
            second = await other.__aenter__() if other is not None else None
            try:
                if second is not None:
                    await second.until(lambda: bool(second.flow().get("partitions")), "a partition")
                load = group.create_task(_load(feeder, table, last + 1), name="load")
                for _ in range(3):
                    before = await ends(target_database)
                    code, said = await person.replay(capfd, from_start=True)
                    assert code == 0
                    assert said["checkpoints_moved"] == 2
                    await until(lambda b=before: _passed(target_database, b))
                await load
                expected = [(n, str(last + ROUNDS)) for n in range(40)]
                await run.rows(target_database, f"{VERSIONS} ORDER BY 1", expected)
                looked = poller.looks
                await until(lambda: _more(poller, looked))
            finally:
                if other is not None:
                    await other.__aexit__(None, None, None)
        assert poller.wrong == []
        assert poller.looks > 3


async def _load(feeder: Feeder, table: Table, first: int) -> None:
    for lsn in range(first, first + ROUNDS):
        make(table, *range(40), lsn=lsn, name=str(lsn))
        await feeder.flush()


async def _passed(url: str, before: dict[int, int]) -> bool:
    now = await ends(url)
    return all(now[p] >= at for p, at in before.items())


async def _more(poller: Poller, looks: int) -> bool:
    return poller.looks > looks + 1


async def test_an_idle_flow_goes_back_and_mends_what_a_person_has_broken(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said in status as a replay, and as no loss of the target's."""
    person = operator(tmp_path, feeder, target_database)
    await filled(feeder, *range(10))
    async with applying(person.config) as run:
        await run.rows(target_database, IDS, [(n,) for n in range(10)])
        await run.settled(feeder)
        once = measured(run)
        await execute(target_database, "DELETE FROM mirror.people WHERE id < 3")
        code, said = await person.replay(capfd, from_start=True, dry_run=True)
        counts = said["counts"]
        assert (code, counts["events"], counts["rows_changed"], counts["same"]) == (0, 10, 3, 7)
        assert said["checkpoints_moved"] == 0
        code, _ = await person.replay(capfd, from_start=True)
        assert code == 0
        await run.rows(target_database, IDS, [(n,) for n in range(10)])
        await run.settled(feeder)
        assert not [text for text in run.status.record.detail["findings"] if "has lost rows" in text]
        assert measured(run) in (once, None), "the age of what was committed long before is no latency"


async def test_a_time_and_an_lsn_lead_to_their_offsets(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    person = operator(tmp_path, feeder, target_database)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for lsn in range(100, 150):
        make(table, lsn, lsn=lsn)
        drop(table, lsn, lsn)  # and its tombstone
        await feeder.flush()
    async with applying(person.config) as run:
        await run.settled(feeder)
        await run.stop()
    _, said = await person.replay(capfd, from_lsn="0/78", dry_run=True)  # 120
    (span,) = said["partitions"]
    assert span["events"] == 2 * 30
    _, said = await person.replay(capfd, from_lsn="0/78", to_lsn="0/7A", dry_run=True)
    assert said["partitions"][0]["events"] == 2 * 2
    _, said = await person.replay(capfd, from_time="1h", dry_run=True)
    assert said["partitions"][0]["events"] == 2 * 50
    code, said = await person.replay(capfd, from_lsn="0/FFFF")
    assert (code, said["checkpoints_moved"]) == (1, 0)
    code, _ = await person.replay(capfd, from_offset=span["from_offset"])
    assert code == 0
    async with applying(person.config) as run:  # the record right before it is read again and compared
        await run.settled(feeder)
        assert await ends(target_database) == {0: span["checkpoint"]}


async def test_what_retention_has_taken_is_said_before_anything_is_touched(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    person = operator(tmp_path, feeder, target_database)
    table = await filled(feeder, *range(20), partitions=1)
    async with applying(person.config) as run:
        await run.settled(feeder)
        before = await ends(target_database)
        await feeder.delete_records(table.topic, {0: 5})
        for wish in ({"from_offset": 2}, {"from_lsn": "0/10"}, {"from_time": "1h"}):
            with pytest.raises(ConfigError) as caught:
                await person.replay(capfd, **wish)
            text = str(caught.value)
            assert f"{table.topic}[0] starts at offset 5" in text
            assert f"`tailrace backfill {feeder.source} public.people`" in text
            assert "--from-start" in text
            assert caught.value.exit_code == 64
        assert await ends(target_database) == before
        _, said = await person.replay(capfd, from_offset=2, dry_run=True)
        assert said["partitions"][0]["taken_by_retention"] == f"{table.topic}[0] starts at offset 5"
        code, said = await person.replay(capfd, from_start=True)
        assert (code, said["partitions"][0]["from_offset"]) == (0, 5)
        await run.settled(feeder)
    make(table, 99, lsn=200)
    await feeder.flush()
    async with applying(person.config) as run:  # a new process accepts that checkpoint
        await run.rows(target_database, IDS, [(n,) for n in [*range(20), 99]])


async def test_replayed_deletes_and_truncates_pass_the_gates_and_others_do_not(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in a process that starts after the replay: the target knows how far it goes."""
    free = operator(tmp_path, feeder, target_database)
    table = await filled(feeder, *range(60))
    async with applying(free.config) as run:
        await run.settled(feeder)
        table.truncate(150)
        make(table, *range(100), lsn=160)
        await feeder.flush()
        for n in range(50, 100):
            drop(table, n, 200)
        await feeder.flush()
        await run.rows(target_database, IDS, [(n,) for n in range(50)])
        await run.settled(feeder)
        await run.stop()
    await execute(target_database, "TRUNCATE _tailrace.deleted")
    gated = operator(tmp_path, feeder, target_database, ", truncate: hold, hold_deletes_above: 10%")
    code, _ = await gated.replay(capfd, from_start=True)
    assert code == 0
    async with applying(gated.config) as run:
        async with await psycopg.AsyncConnection.connect(target_database) as locked:
            await locked.execute("LOCK TABLE mirror.people IN SHARE ROW EXCLUSIVE MODE")
            await run.until(lambda: bool(replays(run)), "the replay in status")
        await run.settled(feeder)
        assert run.flow()["held"] == []
        await run.until(lambda: not replays(run), "its end")
        for n in range(20):
            drop(table, n, 300)
        await feeder.flush()
        await run.until(lambda: run.flow().get("state") == "held", "held")
        assert "20 of 50 rows" in run.flow()["reason"], "what was replayed is not counted as rows made"
        await run.rows(target_database, IDS, [(n,) for n in range(50)])


@pytest.mark.thorough
async def test_a_truncate_that_was_refused_long_ago_stays_refused(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    person = operator(tmp_path, feeder, target_database, ", truncate: hold")
    table = await filled(feeder, *range(10))
    async with applying(person.config) as run:
        await run.rows(target_database, IDS, [(n,) for n in range(10)])
        table.truncate(150)
        await feeder.flush()
        await run.until(lambda: run.flow().get("state") == "held", "held")
        assert await decide_held(person.config, "mirror", "refused")
        make(table, 10, lsn=200)
        await feeder.flush()
        await run.rows(target_database, IDS, [(n,) for n in range(11)])
        await run.settled(feeder)
        await run.stop()
    await execute(
        target_database, "DELETE FROM _tailrace.gates"
    )  # another decision has taken its place since
    before = await ends(target_database)
    await person.replay(capfd, from_start=True)
    async with applying(person.config) as run:
        await until(lambda: _passed(target_database, before))
        await run.settled(feeder)
        await run.rows(target_database, IDS, [(n,) for n in range(11)])
        assert run.flow()["held"] == []


@pytest.mark.thorough
async def test_a_redis_target_goes_back_too(
    feeder: Feeder, valkey_server: ValkeyServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of it, and beside a process that applies single keys."""
    valkey_server.start()
    client = Redis.from_url(valkey_server.url, protocol=2, decode_responses=True)
    await client.flushall()
    try:
        person = Operator(tmp_path, redis_config_text(feeder, valkey_server.url))
        table = await filled(feeder, *range(10))
        drop(table, 9, 150)
        await feeder.flush()
        names = {f"mirror:people:{n}" for n in range(9)}

        async def there() -> bool:
            return set(await client.keys("mirror:people:*")) == names

        async with applying(person.config) as run:
            await until(there)
            await run.settled(feeder)
            await client.delete("mirror:people:1", "mirror:people:2")
            code, said = await person.replay(capfd, from_start=True, keys=["1", "9"])
            assert (code, said["counts"]["events"], said["checkpoints_moved"]) == (0, 3, 0)
            names.discard("mirror:people:2")
            await until(there)
            names.add("mirror:people:2")
            code, said = await person.replay(capfd, from_start=True)
            assert (code, said["checkpoints_moved"]) == (0, 2)
            await until(there)
            await run.settled(feeder)
            assert await there()
    finally:
        await client.flushall()
        await client.aclose()


async def test_only_some_keys_or_a_part_move_no_checkpoint(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a process that applies; also what the log has of a deleted row, which stays deleted."""
    person = operator(tmp_path, feeder, target_database)
    table = await filled(feeder, *range(10))
    drop(table, 9, 150)
    await feeder.flush()
    async with applying(person.config) as run:
        await run.rows(target_database, IDS, [(n,) for n in range(9)])
        await run.settled(feeder)
        before = await ends(target_database)
        await execute(target_database, "DELETE FROM mirror.people WHERE id < 4")
        code, said = await person.replay(capfd, from_start=True, keys=["1", '{"id": 2}', "9"])
        assert (code, said["counts"]["events"], said["counts"]["older"]) == (0, 4, 0)
        await run.rows(target_database, IDS, [(n,) for n in [1, 2, *range(4, 9)]])
        code, said = await person.replay(capfd, from_start=True, to_lsn="0/64")  # 100: before all of it
        assert (code, said["counts"]["events"]) == (1, 0)
        lists = tmp_path / "keys"
        lists.write_text("# two of them\n0\n\n3\n")
        code, _ = await person.replay(capfd, from_start=True, key_file=str(lists))
        assert code == 0
        await run.rows(target_database, IDS, [(n,) for n in range(9)])
        code, said = await person.replay(capfd, from_start=True, to_lsn="0/65")
        assert (code, said["counts"]["events"]) == (0, 10)
        await run.rows(target_database, IDS, [(n,) for n in range(9)])
        assert await ends(target_database) == before
        make(table, 10, lsn=300)
        await feeder.flush()
        await run.rows(target_database, IDS, [(n,) for n in [*range(9), 10]])


@pytest.mark.thorough
async def test_parked_keys_are_neither_doubled_nor_passed_over(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    person = operator(tmp_path, feeder, target_database)
    table = await filled(feeder, 1, 2)
    async with applying(person.config) as run:
        await run.rows(target_database, IDS, [(1,), (2,)])
        await execute(target_database, "ALTER TABLE mirror.people ADD CHECK (name <> 'bad')")
        make(table, 1, lsn=200, name="bad")
        make(table, 2, lsn=201, name="b")
        await feeder.flush()
        await run.until(lambda: run.flow().get("parked") == 1, "parked")
        await run.settled(feeder)
        parked = "SELECT sequence, lsn FROM _tailrace.parked"
        await run.rows(target_database, parked, [(1, 200)])
        code, said = await person.replay(capfd, from_start=True, keys=["1"])
        assert (code, said["counts"]["parked"]) == (0, 1)
        before = await ends(target_database)
        await person.replay(capfd, from_start=True)
        await until(lambda: _passed(target_database, before))
        await run.settled(feeder)
        await run.rows(target_database, parked, [(1, 200)])
        await run.rows(target_database, VERSIONS + " ORDER BY 1", [(1, "a"), (2, "b")])


async def test_flows_that_cannot_be_replayed_say_what_can_be_done(
    feeder: Feeder, target_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await filled(feeder, 1)
    person = operator(tmp_path, feeder, target_database)
    unguarded = operator(tmp_path, feeder, target_database, ", version: none")
    with pytest.raises(ConfigError, match="`version: side`"):
        await unguarded.replay(capfd, from_start=True)
    person = operator(tmp_path, feeder, target_database)
    with pytest.raises(ConfigError, match="has applied nothing of that yet"):
        await person.replay(capfd, from_start=True)
    with pytest.raises(ConfigError, match="where is the replay to begin"):
        await person.replay(capfd)
    with pytest.raises(ConfigError, match="begins at one place"):
        await person.replay(capfd, from_start=True, from_time="1h")
    for key, what in [("{id", "begins as JSON and is none"), ("x", "an integer was expected, not 'x'")]:
        with pytest.raises(ConfigError, match=what):
            await person.replay(capfd, from_start=True, keys=[key])
    lists = tmp_path / "keys"
    lists.write_text("# two of them\n\n1\n{\n")
    with pytest.raises(ConfigError, match="begins as JSON and is none") as caught:
        await person.replay(capfd, from_start=True, key_file=str(lists))
    assert caught.value.where == f"{lists}:4"
    async with applying(person.config) as run:
        await run.settled(feeder)
        with pytest.raises(ConfigError, match="has 2 of them"):
            await person.replay(capfd, from_offset=0)
        with pytest.raises(ConfigError, match="no topic of flow"):
            await person.replay(capfd, from_start=True, topics=[f"{feeder.source}.public.peeple"])
        await feeder.table("lines", [("text", "text", "text")], key=(), identity="f")
        table = await feeder.table("lines", [("text", "text", "text")], key=(), identity="f")
        table.create({"text": "a"}, 300)
        await feeder.flush()
        await run.settled(feeder)
        keyless = f"{feeder.source}.public.lines"
        with pytest.raises(ConfigError, match=r"public\.lines has no key"):
            await person.replay(capfd, from_start=True, topics=[f"{feeder.source}.public.people", keyless])
        code, said = await person.replay(capfd, from_start=True)
        assert (code, said["left_out"]) == (0, [keyless])
        assert {place["topic"] for place in said["partitions"]} == {f"{feeder.source}.public.people"}
