"""One holder at any time, in SQLite and in Postgres; one that was frozen writes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select

from consumers.control.database import Database
from consumers.control.lease import SILENT_S, Lease, LeaseLost
from streamer.config import Config
from tests.harness.control import control_config

meta = MetaData()
writes = Table("writes", meta, Column("n", Integer))


@pytest.fixture
def config(tmp_path: Path, control_url: str) -> Config:
    return control_config(tmp_path, url=control_url)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lease(config: Config, holder: str, clock: Callable[[], float]) -> Lease:
    database = Database(config)
    database.prepare("writes", 1, meta)
    made = Lease(database, "jobs", holder, clock_s=clock)
    made.open()
    return made


def write_guarded(database: Database, lease: Lease) -> None:
    with database.begin() as connection:
        connection.execute(insert(writes), {"n": 1})
        lease.guard(connection)


def test_the_first_holds_it_until_it_is_silent_and_then_writes_nothing(config: Config) -> None:
    clock = Clock()
    one, other = lease(config, "one", clock), lease(config, "other", clock)
    assert one.beat()
    assert not other.beat()
    assert other.holder == "one"
    clock.now_s += SILENT_S - 1
    assert one.beat()
    assert not other.beat()
    clock.now_s += SILENT_S - 1
    assert not other.beat()
    clock.now_s += 1
    assert other.beat()
    database = Database(config)
    with pytest.raises(LeaseLost):
        write_guarded(database, one)
    assert not one.held
    with database.begin() as connection:
        other.guard(connection)
        assert connection.execute(select(func.count()).select_from(writes)).scalar() == 0
    assert not one.beat()


def test_one_that_gives_it_up_is_followed_at_once(config: Config) -> None:
    clock = Clock()
    one, other = lease(config, "one", clock), lease(config, "other", clock)
    assert one.beat()
    assert not other.beat()
    one.give_up()
    assert other.beat()
    assert not one.beat()


def test_many_at_once_have_one_holder(config: Config) -> None:
    clock = Clock()
    all_ = [lease(config, f"p{n}", clock) for n in range(8)]
    start = threading.Barrier(len(all_))

    def beat(each: Lease) -> bool:
        start.wait()
        return each.beat()

    for _ in range(3):
        with ThreadPoolExecutor(len(all_)) as pool:
            assert sum(pool.map(beat, all_)) == 1
        holder = next(each for each in all_ if each.held)
        all_ = [each for each in all_ if each is not holder] + [lease(config, holder.holder + "'", clock)]
        for each in all_:
            each.beat()
        clock.now_s += SILENT_S


HOLDER = """
import sys, time
from pathlib import Path
from consumers.control.database import Database
from consumers.control.lease import Lease
from streamer.config import load
lease = Lease(Database(load(Path(sys.argv[1]))), "jobs", "process")
lease.open()
while True:
    print(lease.beat(), flush=True)
    sys.stdin.readline()
"""


def test_a_frozen_process_loses_it_and_knows_when_it_wakes(config: Config) -> None:
    clock = Clock()
    here = lease(config, "here", clock)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(config.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "True\n"
            os.kill(process.pid, signal.SIGSTOP)
            assert not here.beat()
            clock.now_s += SILENT_S
            assert here.beat()
            os.kill(process.pid, signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "False\n"
            assert here.beat()
        finally:
            process.kill()
