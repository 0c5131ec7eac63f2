"""The control database, in SQLite and in Postgres: made by whoever comes first, its errors ours."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from consumers.control.database import Database, is_gone, owner
from consumers.control.jobs import Jobs
from streamer.config import Config
from streamer.errors import ConfigError, FatalError, RetryableError
from tests.harness.control import control_config

meta = MetaData()
numbers = Table("numbers", meta, Column("n", Integer, primary_key=True))

Make = Callable[[str], Config]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda url: control_config(tmp_path, url=url)


@pytest.fixture
def config(make: Make, control_url: str) -> Config:
    return make(control_url.replace("///", "///a folder/"))


def test_many_make_it_at_once_and_all_write(config: Config) -> None:
    def work(n: int) -> None:
        opened = Database(config)
        opened.prepare("numbers", 1, meta)
        with opened.begin() as connection:
            connection.execute(insert(numbers), {"n": n})
        opened.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    with Database(config).begin() as connection:
        assert sorted(connection.execute(select(numbers.c.n)).scalars()) == list(range(24))


def test_two_that_know_of_a_job_at_once(config: Config) -> None:
    """`tailrace serve`, and a `run-job` right behind it: the job is noted between the look and the note."""
    one, other = Jobs(Database(config)), Jobs(Database(config))
    one.open()

    def names() -> Iterator[str]:
        other.know(["audit"], 5)
        yield from ("audit", "mark")

    one.know(names(), 6)
    assert sorted(one.states()) == ["audit", "mark"]


def test_a_newer_format_is_refused(config: Config) -> None:
    Database(config).prepare("numbers", 2, meta)
    Database(config).prepare("numbers", 2, meta)
    with pytest.raises(FatalError, match="format 2 of numbers, this program knows 1"):
        Database(config).prepare("numbers", 1, meta)


def test_a_database_that_does_not_answer_is_tried_again(make: Make) -> None:
    config = make("postgresql://nobody:secret@127.0.0.1:1/nothing")
    with pytest.raises(RetryableError, match="control database does not answer") as found:
        Database(config).prepare("numbers", 1, meta)
    assert "secret" not in str(found.value)


def test_a_file_that_is_taken_away_is_not_made_anew(make: Make, tmp_path: Path) -> None:
    """What has been kept would be forgotten without a word; once it is back, or a copy of it, it is used."""
    one, elsewhere = Database(make("sqlite:///control.db")), tmp_path / "elsewhere.db"

    def write(n: int) -> list[int]:
        with one.begin() as connection:
            connection.execute(insert(numbers), {"n": n})
            return list(connection.execute(select(numbers.c.n).order_by(numbers.c.n)).scalars())

    one.prepare("numbers", 1, meta)
    assert write(1) == [1]
    one.close()  # as SQLite wants it: all of it is in the one file then
    (tmp_path / "control.db").rename(elsewhere)
    for _ in range(2):
        with pytest.raises(RetryableError, match="its file is gone") as found:
            write(2)
        assert "put it back" in found.value.fix
    assert not (tmp_path / "control.db").exists()
    with pytest.raises(RetryableError, match="its file is gone"):  # nor by a process that begins then
        Database(make("sqlite:///control.db")).prepare("numbers", 1, meta)
    assert not (tmp_path / "control.db").exists()
    shutil.copy(elsewhere, tmp_path / "control.db")
    assert write(3) == [1, 3]


def test_another_database_in_its_place_is_told_until_a_restart(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Database(make("sqlite:///control.db"))
    one.prepare("numbers", 1, meta)
    one.close()
    (tmp_path / "control.db").rename(tmp_path / "elsewhere.db")
    (tmp_path / "control.db").touch()
    for _ in range(2):
        with pytest.raises(RetryableError, match="another one is in its place"), one.begin():
            pass
        with pytest.raises(RetryableError, match="another one is in its place"):
            one.prepare("numbers", 1, meta)
    (tmp_path / "control.db").unlink()
    again = Database(make("sqlite:///control.db"), makes_anew=True)
    again.prepare("numbers", 1, meta)
    assert "is not the one that was here before" in caplog.text
    again.close()
    with pytest.raises(RetryableError, match="another one is in its place"), one.begin():
        pass
    (tmp_path / "elsewhere.db").rename(tmp_path / "control.db")
    with one.begin() as connection:
        assert connection.execute(select(numbers)).all() == []


FROZEN = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


def test_who_has_locked_it_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a new part waits but once: a look at a frozen process's database ends."""
    monkeypatch.setattr("consumers.control.database.SQLITE_BUSY_MS", 300)
    one = Database(make("sqlite:///control.db"))
    one.prepare("numbers", 1, meta)
    program = [sys.executable, "-c", FROZEN, str(tmp_path / "control.db")]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            holder.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
            words = rf"database is locked: process {holder.pid} \(python.*, which is stopped\) has locked it"
            with pytest.raises(RetryableError, match=words), one.begin() as connection:
                connection.execute(insert(numbers), {"n": 1})
            began_s = time.monotonic()
            with pytest.raises(RetryableError, match=words):
                Database(make("sqlite:///control.db")).prepare("more", 1, MetaData())
            assert time.monotonic() - began_s < 4 * 0.3, "it has waited again and again"
        finally:
            holder.kill()


def test_a_url_that_is_none_is_not_shown(make: Make) -> None:
    with pytest.raises(ConfigError, match="no URL of a database") as found:
        Database(make("nothing://me:secret@there/x"))
    assert "secret" not in str(found.value)


def test_a_process_of_this_machine_is_gone_when_its_number_is() -> None:
    host, pid, begun = owner().rsplit(":", 2)
    assert is_gone(f"{host}:{2**22 + 1}:7", 0, 0)
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().split()[21]
            assert not is_gone(f"{host}:{process.pid}:{ticks}", 0, 10**15)
            assert is_gone(f"{host}:{process.pid}:1", 0, 0), "another process has its number"
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(f"{host}:{process.pid}:{ticks}", 0, 0), "dead, and not waited for"
    assert is_gone(f"{host}:{pid}:{begun}", 0, 0), "this process knows what it works on"
    assert is_gone("elsewhere.example:1:1", 0, 121_000_000)
    assert not is_gone("elsewhere.example:1:1", 0, 119_000_000)
