"""Overrides in SQLite and Postgres: in force for every process, taken back, shown when they do not fit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from consumers.commands.overrides import diff
from consumers.control.database import Database
from consumers.control.lease import Lease
from consumers.control.overrides import PART, Outrun, overrides
from consumers.schedule.plan import Outcome
from consumers.schedule.runner import Runner
from consumers.schedule.service import Schedule
from streamer.config import Config, load
from streamer.errors import ConfigError
from tests.harness.control import control_config
from tests.integration.test_schedule_runner import until

FILE = """\
schedules:
  jobs:
    first: {{exec: 'app:first', every: 10m}}
    {second}: {{exec: 'app:second', at: ['02:00']}}
"""
WAITS_S = 0.1  # a write that waits for nobody takes some milliseconds
FIRST, SECOND = "schedules.jobs.first", "schedules.jobs.second"


@pytest.fixture
def config(tmp_path: Path, control_url: str) -> Config:
    return write(tmp_path, control_url)


def write(folder: Path, url: str, second: str = "second") -> Config:
    return control_config(folder, FILE.format(second=second), url=url)


def schedule(config: Config) -> Schedule:
    made = Schedule(config, Database(config))
    made.open()
    return made


def test_a_change_is_seen_by_who_looks_already_and_taken_back(config: Config) -> None:
    here, there = schedule(config), schedule(config)
    assert there.plans()["first"].job.every_s == 600.0
    number = here.change(f"{FIRST}.every", "1h", "anne", 5)
    assert there.plans()["first"].job.every_s == 3600.0
    (standing,) = there.in_force().standings
    assert (standing.before, standing.now, standing.problem) == ({"every": 600.0}, {"every": 3600.0}, "")
    assert (standing.override.by, standing.override.at_us, standing.override.value) == ("anne", 5, "1h")
    assert {view["name"]: view["overridden"] for view in there.view()} == {"first": ["every"], "second": []}
    there.take_back([number], "bob", 6)
    assert here.plans()["first"].job.every_s == 600.0
    (past,) = here.overrides.last()
    assert (past.undone_us, past.undone_by) == (6, "bob")
    with pytest.raises(ConfigError, match=f"no override {number} is in force"):
        here.take_back([number], "bob", 7)


def test_a_change_takes_the_place_of_an_earlier_one_and_of_other_times(config: Config) -> None:
    its = schedule(config)
    for path, value in (
        (f"{SECOND}.every", "5m"),
        (f"{SECOND}.every", "6m"),
        (f"{SECOND}.cron", "0 3 * * *"),
    ):
        last = its.change(path, value, "anne", 5)
    assert [each.override.override for each in its.in_force().standings] == [last]
    assert its.plans()["second"].job.cron == "0 3 * * *"
    assert its.plans()["second"].job.at == ()
    its.take_back([last], "anne", 6)
    assert its.plans()["second"].job.at == ("02:00",)


def test_a_bad_change_is_not_kept(config: Config) -> None:
    its = schedule(config)
    its.change(f"{FIRST}.after", ["second"], "anne", 5)
    with pytest.raises(ConfigError, match="the job waits for itself"):
        its.change(f"{SECOND}.after", ["first"], "anne", 6)
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        its.change(f"{FIRST}.every", "soon", "anne", 7)
    assert len(its.in_force().standings) == 1


def test_of_two_changes_at_once_that_make_a_cycle_one_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was put into force after this one was judged, and before it was written."""
    here, there = schedule(config), schedule(config)
    judge = here._check_shown

    def late(*of: Any) -> None:
        judge(*of)
        if not there.in_force().standings:
            there.change(f"{SECOND}.after", ["first"], "bob", 5)

    monkeypatch.setattr(here, "_check_shown", late)
    with pytest.raises(ConfigError, match="the job waits for itself"):
        here.change(f"{FIRST}.after", ["second"], "anne", 5)
    (standing,) = here.in_force().standings
    assert (standing.override.by, standing.problem) == ("bob", "")


def test_what_a_change_needs_is_not_taken_back_beside_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = schedule(config), schedule(config)
    need = there.change(f"{SECOND}.after", ["first"], "anne", 5)
    undo = here.overrides.undo

    def late(numbers: list[int], by: str, now_us: int, **beside: Any) -> None:
        if len(there.in_force().standings) == 1:
            there.change(f"{SECOND}.at", None, "bob", 6)
        undo(numbers, by, now_us, **beside)

    monkeypatch.setattr(here.overrides, "undo", late)
    with pytest.raises(ConfigError, match=r"needs it: .*the job never fires"):
        here.take_back([need], "anne", 7)
    assert len(here.in_force().standings) == 2


def test_what_is_written_beside_a_change_waits_for_its_end(config: Config) -> None:
    database = Database(config)
    its = schedule(config)
    row = {"path": f"{FIRST}.every", "value": "1", "by": "anne", "at_us": 5}
    with ThreadPoolExecutor() as threads:
        with database.alone(PART) as connection:
            other = threads.submit(its.overrides.put, f"{SECOND}.at", None, (), "bob", 6, beside=[])
            assert not wait([other], timeout=WAITS_S).done
            connection.execute(insert(overrides), row)
        with pytest.raises(Outrun):
            other.result()


def test_a_change_that_cannot_be_shown_is_not_kept(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process shows what is in force: one that fails at it would stop."""

    def fails(*_: object, **__: object) -> list[object]:
        raise OverflowError("date value out of range")

    its = schedule(config)
    with monkeypatch.context() as broken:
        broken.setattr("consumers.schedule.service.job_views", fails)
        with pytest.raises(
            ConfigError, match="the next start of first cannot be told: date value out of range"
        ):
            its.change(f"{FIRST}.every", "1h", "anne", 5)
    assert its.in_force().standings == ()
    its.overrides.put(f"{FIRST}.every", "3000000d", (), "of an earlier version", 6)
    (standing,) = its.in_force().standings
    assert "must be 3660d or less" in standing.problem
    assert [view["name"] for view in its.view()] == ["first", "second"]


def test_in_a_narrow_terminal_numbers_and_jobs_are_whole(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    its = schedule(config)
    changes = {"every": "1h", "after": ["second"], "grace": "90s"}
    numbers = [
        its.change(f"{FIRST}.{key}", value, "somebody@a-host.example", 5) for key, value in changes.items()
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert diff(config.path, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert [line.split()[:2] for line in lines if " first " in line] == [
        [str(number), "first"] for number in numbers
    ]


def test_what_the_file_says_too_is_no_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times are of the file's zone, as those of `tailrace jobs`."""
    config = write(tmp_path, "sqlite:///control.db")
    zone = "schedules:\n  timezone: Asia/Tokyo\n"
    config.path.write_text(config.path.read_text().replace("schedules:\n", zone))
    its = schedule(config)
    same = its.change(f"{FIRST}.every", "600s", "anne", 5)
    its.change(f"{SECOND}.every", "1h", "anne", 5)
    assert {view["name"]: view["overridden"] for view in its.view()} == {"first": [], "second": ["every"]}
    assert diff(config.path, as_json=False) == 0
    header, line, caption, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "SINCE"
    assert (line.split()[1], line.rstrip().endswith("1970-01-01 09:00:00")) == ("second", True)
    assert caption.strip() == "times are of Asia/Tokyo"
    assert f"override {same} changes nothing: first has every: 10m in the file, too" in rest[0]
    its.take_back([], "anne", 6)


def test_what_is_exported_and_put_into_the_file_is_in_force_by_itself(tmp_path: Path) -> None:
    config = write(tmp_path, "sqlite:///control.db")
    its = schedule(config)
    its.change(f"{FIRST}.cron", "0 4 * * *", "anne", 5)
    its.change(f"{SECOND}.after", ["first"], "anne", 5)
    words = [sys.executable, "-m", "consumers", "config", "export", f"--config={config.path}"]
    exported = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    head, _, _ = config.path.read_text().partition("schedules:")
    config.path.write_text(head + exported)
    wanted = its.in_force().config.schedules
    its.take_back([], "anne", 6)
    its = schedule(load(config.path))
    assert (its.in_force().standings, its.in_force().config.schedules) == ((), wanted)
    assert wanted.jobs["first"].cron == "0 4 * * *"


def test_a_change_that_others_need_is_not_taken_back_alone(config: Config) -> None:
    its = schedule(config)
    need = its.change(f"{SECOND}.after", ["first"], "anne", 5)
    other = its.change(f"{SECOND}.at", None, "anne", 6)
    with pytest.raises(ConfigError, match=f"override {other} needs it: .*never fires"):
        its.take_back([need], "anne", 7)
    assert len(its.take_back([], "anne", 8)) == 2
    assert its.in_force().standings == ()


def test_a_change_whose_job_is_gone_says_so_and_harms_no_other(config: Config) -> None:
    its = schedule(config)
    its.change(f"{SECOND}.enabled", False, "anne", 5)
    its.change(f"{FIRST}.enabled", False, "anne", 6)
    renamed = schedule(write(config.base, config.control.url.get_secret_value(), "third"))
    lost, kept = renamed.in_force().standings
    assert (lost.problem, lost.now, kept.problem) == ("there is no job 'second'", {}, "")
    assert not renamed.plans()["first"].job.enabled
    assert renamed.plans()["third"].job.enabled


async def test_the_scheduler_goes_by_a_change_within_seconds(config: Config) -> None:
    (config.base / "app.py").write_text("def second():\n    return 'done'\n")
    its, other = schedule(config), schedule(config)
    other.change(f"{FIRST}.enabled", False, "anne", 5)
    lease = Lease(Database(config), "jobs", "one")
    lease.open()
    runner, stop = Runner(config, its.plans, its.jobs, lease), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(stop))
        await until(lambda: bool(runner.states))
        assert its.jobs.history("second") == []
        other.change(f"{SECOND}.every", "1h", "anne", 6)
        await until(lambda: [past.outcome for past in its.jobs.history("second")] == [Outcome.OK])
        stop.set()
    assert its.jobs.history("first") == []
