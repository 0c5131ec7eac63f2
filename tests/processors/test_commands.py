"""What people do about processors: a dry run, dead letters, a reset, a look by the doctor, a first agent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from consumers import cli_process
from consumers.commands import init_processor, parked, process
from consumers.commands import reset as resetting
from consumers.processors import doctor as processors_doctor
from consumers.processors import rocks
from consumers.processors.doctor import check_processors
from streamer.config import Config, load
from streamer.doctor.check import Level
from streamer.errors import ConfigError, FatalError
from streamer.kafka import admin
from streamer.publisher.topics import describe
from tests.harness.feeder import Feeder
from tests.harness.pipeline import REPO
from tests.harness.processing import NAME, config_text, processing

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]
OUTBOX = [(name, "text", "text") for name in ("topic", "about", "body")]
ALL = parked.Filter()


def written(feeder: Feeder, inputs: list[str], folder: Path, **given: Any) -> Config:
    path = folder / "tailrace.yaml"
    path.write_text(config_text(feeder, inputs, **{"agent": "tests.processors.agents:doubled", **given}))
    return load(path, environ={})


async def called(capsys: pytest.CaptureFixture[str], act: Callable[[], Any]) -> tuple[Any, Any]:
    """A command's result, and the JSON that it has printed; it runs a loop of its own."""
    result = await asyncio.to_thread(act)
    text = capsys.readouterr().out
    try:
        return result, json.loads(text)
    except json.JSONDecodeError:
        return result, [json.loads(line) for line in text.splitlines()]


async def test_a_dry_run_prints_what_it_would_send_and_leaves_no_trace(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = await feeder.table("orders", COLUMNS)
    for number in range(5):
        orders.update({"id": number, "n": number}, lsn=100 + number)
    orders.delete({"id": 0}, lsn=200)
    await feeder.flush()
    config = written(feeder, [orders.topic], tmp_path)
    async with admin(feeder.brokers, None) as client:
        before = set(await describe(client))
    code, steps = await called(
        capsys, lambda: process.rehearse(config.path, NAME, from_start=True, limit=100, as_json=True)
    )
    assert code == 0
    sent = [each for step in steps for each in step["sent"]]
    rows = [each["value"]["after"] for each in sent if each["value"] is not None]
    assert sorted((row["id"], row["twice"]) for row in rows if row) == [(n, 2 * n) for n in range(5)]
    assert rows.count(None) == 1  # the delete; its tombstone follows
    assert {each["topic"] for each in sent} == {config.processors[NAME].out}
    assert [said for step in steps for said in step["inferred"]] == [
        f"column twice of {config.processors[NAME].out} is taken for bigint, by its first value"
    ]
    async with admin(feeder.brokers, None) as client:
        assert set(await describe(client)) == before
    _, steps = await called(
        capsys, lambda: process.rehearse(config.path, NAME, from_start=False, limit=1, as_json=True)
    )
    assert isinstance(steps, dict)  # one line: the last record


async def test_a_dry_run_from_the_start_ends_after_so_many_records_of_all_inputs(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [await feeder.table(name, COLUMNS) for name in ("late", "early")]
    late, early = tables
    for table in (early, late):
        for number in range(3):
            table.create({"id": number, "n": number}, lsn=100 + number)
            await feeder.flush()
    config = written(feeder, [table.topic for table in tables], tmp_path)
    code, steps = await called(
        capsys, lambda: process.rehearse(config.path, NAME, from_start=True, limit=4, as_json=True)
    )
    assert code == 0
    records = [(step["topic"], json.loads(step["key"])["id"]) for step in steps]
    assert records == [*((early.topic, number) for number in range(3)), (late.topic, 0)]


async def test_a_dry_run_shows_messages_of_any_bytes(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An outbox's payload may be any text: what looks like JSON is no event, and `null` is no tombstone."""
    bodies = ['{"x":1.0}', "[1]", "null", "1", "hello", None]
    outbox = await feeder.table("outbox", [("id", "integer", "number"), *OUTBOX], partitions=1)
    for number, body in enumerate(bodies):
        outbox.create({"id": number, "topic": "mail", "about": "a", "body": body}, lsn=100 + number)
    await feeder.flush()
    (tmp_path / "mailing.py").write_text(
        "from consumers.processors import outbox_router\n\n"
        'mailing = outbox_router(route="topic", key="about", payload="body")\n'
    )
    config = written(feeder, [outbox.topic], tmp_path, agent="mailing:mailing")

    def rehearse(*, as_json: bool) -> int:
        return process.rehearse(config.path, NAME, from_start=True, limit=10, as_json=as_json)

    assert await asyncio.to_thread(rehearse, as_json=False) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "  -> " in line]
    shown = [str(body) for body in bodies[:-1]] + ["tombstone"]
    assert lines == [f"-> {config.processors[NAME].out}.mail  a  {each}" for each in shown]
    code, steps = await called(capsys, lambda: rehearse(as_json=True))
    assert code == 0
    sent = [each["value"] for step in steps for each in step["sent"]]
    assert sent == [{"x": 1.0}, [1], "null", "1", "hello", None]


async def test_a_dry_run_of_a_body_that_raises_exits_1(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = await feeder.table("orders", COLUMNS)
    orders.update({"id": 1, "n": 1}, lsn=100)
    await feeder.flush()
    (tmp_path / "broken_agent.py").write_text(
        "from consumers.processors import agent\n\n@agent\nasync def broken(change):\n    return 1 / 0\n"
    )
    config = written(feeder, [orders.topic], tmp_path, agent="broken_agent:broken")
    code = await asyncio.to_thread(
        lambda: process.rehearse(config.path, NAME, from_start=True, limit=10, as_json=False)
    )
    out = capsys.readouterr().out
    assert code == 1
    assert "refused: division by zero [ZeroDivisionError]" in out
    assert "of the first record: 0 would be sent, 1 refused; nothing was sent or kept" in out


MOOD = """
from pathlib import Path
from consumers.processors import agent

@agent
async def moody(change):
    if change.after["n"] == 7 and not (Path(__file__).parent / "calm").exists():
        raise ValueError("7 is not liked")
    return change.after
"""


async def test_dead_letters_of_a_processor_are_listed_shown_and_retried(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked, "POLL_S", 0.1)
    module = f"moody_{feeder.name}"
    (tmp_path / f"{module}.py").write_text(MOOD)
    orders = await feeder.table("orders", COLUMNS)
    for number in range(6, 9):
        orders.create({"id": number, "n": number}, lsn=100 + number)
    orders.update({"id": 7, "n": 70}, lsn=300)
    await feeder.flush()
    config = written(feeder, [orders.topic], tmp_path, agent=f"{module}:moody")

    def asked(action: parked.Action, wanted: parked.Filter) -> Callable[[], int]:
        return lambda: parked.ask(
            config.path, NAME, action, wanted, dry_run=False, wait_s=60, as_json=True, sure=True
        )

    async with processing(config) as made:
        await made.until(lambda: made.detail.get("parked") == 1, "the key to be parked")
        _, found = await called(capsys, lambda: parked.show(config.path, NAME, ALL, as_json=True, whole=True))
        (key,) = found
        assert (key["flow"], key["topic"], key["key"]) == (NAME, orders.topic, '{"id":7}')
        assert (key["reason"], key["changes"]) == ({"code": "ValueError", "message": "7 is not liked"}, 2)
        assert [each["payload"]["after"]["n"] for each in key["queue"]] == [7, 70]
        code, outcome = await called(capsys, asked("retry", parked.Filter(key="7")))
        assert (code, outcome["done"], len(outcome["refused"])) == (1, 0, 1)
        (tmp_path / "calm").touch()
        code, outcome = await called(capsys, asked("retry", ALL))
        assert (code, outcome["done"], outcome["refused"]) == (0, 1, [])
        await made.rows({f'{{"id":{n}}}': {"id": n, "n": 70 if n == 7 else n} for n in range(6, 9)})
        (tmp_path / "calm").unlink()
        orders.create({"id": 9, "n": 7}, lsn=400)  # of this row the target has nothing
        orders.delete({"id": 9, "n": 7}, lsn=401)
        orders.update({"id": 8, "n": 7}, lsn=402)
        orders.delete({"id": 8, "n": 7}, lsn=403)
        await feeder.flush()
        await made.until(lambda: made.detail.get("parked") == 2, "two keys to be parked")
        _, outcome = await called(capsys, asked("discard", ALL))
        assert (outcome["done"], [each["key"] for each in outcome["rows_left"]]) == (2, ['{"id":8}'])
    with pytest.raises(ConfigError, match="no target or processor 'mode'"):
        await asyncio.to_thread(lambda: parked.show(config.path, "mode", ALL, as_json=False, whole=False))


async def test_a_reset_derives_everything_again_in_a_higher_epoch(
    feeder: Feeder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = await feeder.table("orders", COLUMNS)
    orders.create({"id": 1, "n": 1}, lsn=100)
    await feeder.flush()
    config = written(feeder, [orders.topic], tmp_path)

    def reset() -> None:
        resetting.reset(config.path, NAME, sure=True, above=4, as_json=True)

    async with processing(config) as made:
        await made.rows({'{"id":1}': {"id": 1, "n": 1, "twice": 2}})
        with pytest.raises(ConfigError, match="run") as caught:
            await asyncio.to_thread(reset)
        assert "stop `tailrace run`" in str(caught.value)
    _, printed = await called(capsys, reset)
    assert printed == {"processor": NAME, "epoch": 5}
    async with processing(config) as made:
        await made.until(lambda: made.detail.get("epoch") == 5, "the epoch")
        records = await made.rows({'{"id":1}': {"id": 1, "n": 1, "twice": 2}})
        versions = [json.loads(r.value)["source"] for r in records if r.key and r.value]
        assert [(each["epoch"], each["commit_lsn"]) for each in versions] == [(1, None), (5, None)]


async def test_the_doctor_looks_at_agents_state_and_topics(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=3)
    people = await feeder.table("people", COLUMNS, partitions=2)
    await feeder.flush()

    async def found(inputs: list[str], agent: str = "tests.processors.agents:doubled") -> dict[str, Any]:
        checks = await check_processors(written(feeder, inputs, tmp_path, agent=agent))
        assert {check.subject for check in checks} == {f"processor {NAME}"}
        return {check.check: check for check in checks}

    checks = await found([orders.topic])
    assert {check.level for check in checks.values()} == {Level.OK}
    assert "3 partitions, so at most so many workers" in checks["topics"].what
    checks = await found([orders.topic, people.topic], "tests.processors.agents:none")
    assert checks["agent"].level is checks["topics"].level is Level.FAIL
    assert "has no 'none'" in checks["agent"].what or "none" in checks["agent"].what
    assert f"{people.topic} has 2, {orders.topic} has 3" in checks["topics"].what
    checks = await found([f"{feeder.source}.public.order"])
    assert checks["topics"].level is Level.NOTE
    assert f"there is {orders.topic}" in checks["topics"].what
    folder = tmp_path / ".tailrace" / "processors" / NAME / "0"
    folder.mkdir(parents=True)
    (folder / "FORMAT").write_text('{"format": 99}')
    checks = await found([orders.topic])
    assert "has format 99, this program reads 1" in checks["state"].what
    assert "remove the folder" in checks["state"].fix
    with pytest.raises(FatalError, match="has format 99"):
        rocks.open_store(folder, cluster_id="c", topic="t")
    shutil.rmtree(tmp_path / ".tailrace")
    (tmp_path / ".tailrace").write_text("in the way")
    checks = await found([orders.topic])
    assert (checks["state"].level, ".tailrace is no folder" in checks["state"].what) == (Level.FAIL, True)
    (tmp_path / ".tailrace").unlink()
    monkeypatch.setattr(processors_doctor, "LEAST_FREE_BYTES", 2**62)
    checks = await found([orders.topic])
    assert "bytes left" in checks["state"].what


def test_state_in_memory_is_refused_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.state_kind(NAME, memory=True) == "rocksdb"  # it is installed
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(ConfigError, match="RocksDB is not installed") as caught:
        process.state_kind(NAME, memory=False)
    assert "tailrace[rocksdb]" in str(caught.value)
    assert "--yes" in str(caught.value)
    assert process.state_kind(NAME, memory=True) == "memory"


def test_the_command_runs_on_uvloop(feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = []

    async def asks(*_: Any, **__: Any) -> None:
        loops.append(type(asyncio.get_running_loop()))

    monkeypatch.setattr(process, "run_processor", asks)
    config = written(feeder, [f"{feeder.source}.public.orders"], tmp_path)
    process.process(config.path, NAME, memory=True, metrics_port=-1, restarts=0, as_json=False)
    assert loops == [uvloop.Loop]


def test_a_first_agent_comes_with_its_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init_processor.init("big-orders", tmp_path, force=False, as_json=True)
    given = json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["big_orders.py", "test_big_orders.py"]
    assert 'agent: "big_orders:big_orders"' in given["config"]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    written_test = runpy.run_path(str(tmp_path / "test_big_orders.py"))
    cases = [case for name, case in written_test.items() if name.startswith("test_")]
    for case in cases:
        case()
    assert len(cases) == 2
    monkeypatch.delitem(sys.modules, "big_orders")
    with pytest.raises(ConfigError, match="is there already"):
        init_processor.init("big-orders", tmp_path, force=False, as_json=True)
    init_processor.init("big-orders", tmp_path, force=True, as_json=True)
    with pytest.raises(ConfigError, match="no name for a processor"):
        init_processor.init("9th", tmp_path, force=False, as_json=True)
    with pytest.raises(ConfigError, match="'class' is a word of Python's own") as caught:
        init_processor.init("class", tmp_path, force=False, as_json=True)
    init_processor.init(caught.value.fix.split()[-1], tmp_path, force=False, as_json=True)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Shop", "the source 'shop' has that name"),
        ("mirror", "a target has that name"),
        ("revenue", "there is a processor 'revenue' already"),
        ("sums", "the processor 'revenue' publishes to the topic 'sums'"),
    ],
)
def test_a_name_that_the_config_would_refuse_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, what: str
) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(
        "sources: {shop: {url: '${NOT_SET}'}}\ntargets: {mirror: }\nprocessors: {revenue: {out: sums}}\n"
    )
    with pytest.raises(ConfigError, match=what):
        init_processor.init(name, tmp_path, force=True, as_json=True)
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("no: [yaml")
    init_processor.init(name, tmp_path, force=True, as_json=True)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *(
            (name, "is found first")
            for name in ("json", "select", "faust", "pytest", "consumers", "test", "kept")
        ),
        ("", "'' is no name"),
        ("n" * 64, "a name of 64 characters; the limit is 63"),
    ],
)
def test_a_name_that_no_module_beside_the_config_can_have_is_refused(
    tmp_path: Path, name: str, what: str
) -> None:
    kept = tmp_path / "kept" / "__init__.py"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(ConfigError, match=what) as raised:
        cli_process.init(tmp_path, processor=name, force=True, as_json=True)
    assert list(tmp_path.iterdir()) == [kept.parent]
    if what == "is found first":
        (cure,) = re.findall(r"such as (\w+);", raised.value.fix)
        init_processor.init(cure, tmp_path, force=False, as_json=True)
    init_processor.init("n" * 63, tmp_path, force=False, as_json=True)


@pytest.mark.parametrize("options", [{"limit": 5}, {"from_start": True}])
def test_what_is_of_a_dry_run_is_refused_without_one(options: dict[str, Any]) -> None:
    (option,) = (f"--{name.replace('_', '-')}" for name in options)
    with pytest.raises(ConfigError, match=f"{option} is of a dry run") as raised:
        cli_process.process("revenue", **options)
    assert "add --dry-run" in raised.value.fix


@pytest.mark.thorough
def test_a_first_agents_test_is_green_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init_processor.init("big-orders", tmp_path, force=False, as_json=False)
    assert "wrote " in capsys.readouterr().out
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout
