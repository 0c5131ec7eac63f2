"""State folders: who has one, what is damaged in it, and what the disk refuses."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from consumers.processors import agent, rehearsal, table
from consumers.processors.context import Change, Context, Definition, Forwarded, Given, Hop, Table
from consumers.processors.manifest import is_cut_off
from consumers.processors.rocks import AGAIN_S, Damaged, RocksStore, open_store
from consumers.processors.state import Mark, Overlay
from consumers.testing import Log
from streamer.errors import FatalError, RetryableError

ROWS = {b"t\0%04d" % number: b"%064d" % number for number in range(3000)}


def test_a_folder_is_held_by_one_and_keeps_what_was_committed(tmp_path: Path) -> None:
    """Two have it open: the second is told so; once it is closed, all that was committed is there."""
    first = open_store(tmp_path / "0", cluster_id="c", topic="t")
    first.write({b"t\0a": b"1"}, Mark(7, "seven"))
    with pytest.raises(RetryableError, match=f"process {os.getpid()} of this machine has"):
        open_store(tmp_path / "0", cluster_id="c", topic="t")
    first.close()
    second = open_store(tmp_path / "0", cluster_id="c", topic="t")
    assert (second.get(b"t\0a"), second.mark) == (b"1", Mark(7, "seven"))
    second.close()
    other = open_store(tmp_path / "0", cluster_id="another", topic="t")  # Kafka was replaced: begun again
    assert (other.get(b"t\0a"), other.mark) == (None, None)
    other.close()


HOLDER = """
import os, sys, time
from pathlib import Path
from consumers.processors.rocks import open_store

store = open_store(Path(sys.argv[1]), cluster_id="c", topic="t")
if sys.argv[2] == "forks" and not os.fork():
    os.close(1)
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@contextmanager
def held(folder: Path, *, forks: bool = False) -> Iterator[subprocess.Popen[str]]:
    """By another process."""
    command = [sys.executable, "-c", HOLDER, str(folder), "forks" if forks else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{process.pid}\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_damaged_folder_is_left_alone_while_another_process_has_it(tmp_path: Path) -> None:
    """RocksDB would say who has it only once it has read the files."""
    folder = tmp_path / "0"
    open_store(folder, cluster_id="c", topic="t").close()
    with held(folder) as process:
        [path] = (folder / "db").glob("MANIFEST-*")
        path.write_bytes(path.read_bytes()[:-1])
        before = sorted(folder.rglob("*"))
        with pytest.raises(RetryableError, match=f"process {process.pid} of this machine has"):
            open_store(folder, cluster_id="c", topic="t")
        with pytest.raises(RetryableError, match=f"process {process.pid} of this machine has"):
            open_store(folder, cluster_id="another", topic="t")
        assert sorted(folder.rglob("*")) == before
    open_store(folder, cluster_id="c", topic="t").close()


def test_what_a_body_has_forked_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    with held(folder, forks=True) as process:
        process.kill()
        process.wait()
        os.killpg(process.pid, 0)  # its child is still there
        open_store(folder, cluster_id="c", topic="t").close()


@pytest.mark.parametrize("damaged", ["CURRENT", "MANIFEST", "sst", "beginning", "db", "folder"])
def test_a_folder_that_cannot_be_read_is_made_again(damaged: str, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    first = open_store(folder, cluster_id="c", topic="t")
    first.write({**ROWS, b"t\0a": b"1"}, Mark(7, "seven"))
    first.close()
    if damaged == "beginning":
        spoil(folder, damaged)
    elif damaged in ("db", "folder"):
        shutil.rmtree(place := folder if damaged == "folder" else folder / "db")
        place.write_text("no database")
    else:
        for path in (folder / "db").glob(f"*{damaged}*"):
            path.unlink() if damaged == "MANIFEST" else path.write_bytes(b"damaged")
    again = open_store(folder, cluster_id="c", topic="t")
    assert (again.get(b"t\0a"), again.mark) == (None, None)
    again.close()


def damaged(folder: Path) -> None:
    """With a block in the middle of a table that is not what was written."""
    store = open_store(folder, cluster_id="c", topic="t")
    store.write(ROWS, Mark(7, "seven"))
    store.close()
    spoil(folder, "middle")


def spoil(folder: Path, where: str) -> None:
    """Other bytes in the middle of the rows, or at the beginning of each file, as a bad disk has them."""
    for path in [*(folder / "db").glob("*.sst"), *(folder / "db").glob("*.log")]:
        at = path.stat().st_size // 2 if where == "middle" else 0
        with path.open("r+b") as file:
            file.seek(at)
            file.write(random.Random(7).randbytes(256))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_damaged_block_is_no_end_of_a_table_and_its_folder_is_made_again(
    reverse: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "0"
    damaged(folder)
    store = open_store(folder, cluster_id="c", topic="t")
    places = store.scan(b"t\0", reverse=reverse)
    assert sum(1 for _ in islice(places, 1000)) == 1000
    with pytest.raises(Damaged, match="the state is damaged") as raised:
        list(places)
    assert "reads it again" in raised.value.fix
    assert store.failure is raised.value
    store.close()
    whole = open_store(folder, cluster_id="c", topic="t")
    assert (whole.get(b"t\0" + b"0000"), whole.mark, whole.failure) == (None, None, None)
    whole.close()


def records(log: bytes) -> list[int]:
    """Where each record of a MANIFEST of less than a block begins."""
    found, at = [], 0
    while at < len(log):
        found.append(at)
        at += 7 + int.from_bytes(log[at + 4 : at + 6], "little")
    return found


@pytest.mark.parametrize(
    "other",
    [
        lambda log, at: log[: at + 4] + b"\xf3\xd7" + log[at + 6 :],  # its length
        lambda log, at: log[:at] + bytes(len(log) - at),
        lambda log, at: log[: at + 5],
        lambda log, at: log[: at + 6] + b"\x06" + log[at + 7 :],  # its kind: RocksDB hangs
    ],
    ids=["length", "zeros", "shorter", "kind"],
)
def test_tables_that_a_cut_off_manifest_leaves_out_are_noticed(
    other: Callable[[bytes, int], bytes], tmp_path: Path
) -> None:
    """Without them the newest mark is still there, of the write-ahead log: it would look whole."""
    folder = tmp_path / "0"
    store = open_store(folder, cluster_id="c", topic="t")
    store.write(ROWS, Mark(7, "seven"))
    store._db.flush()
    store.write({b"t\0later": b"1"}, Mark(8, "eight"))
    killed = shutil.copytree(folder, tmp_path / "killed")
    store.close()
    whole = open_store(shutil.copytree(killed, tmp_path / "whole"), cluster_id="c", topic="t")
    assert (whole.mark, whole.get(b"t\0" + b"0000")) == (Mark(8, "eight"), ROWS[b"t\0" + b"0000"])
    whole.close()
    [path] = (killed / "db").glob("MANIFEST-*")
    log = path.read_bytes()
    path.write_bytes(other(log, records(log)[-1]))
    again = open_store(killed, cluster_id="c", topic="t")
    assert (again.mark, again.get(b"t\0later")) == (None, None)
    again.close()


def test_a_manifest_of_many_blocks_is_whole_until_its_last_byte_is_gone(tmp_path: Path) -> None:
    """RocksDB ends blocks with what no header fits in, and divides records between them."""
    store = open_store(tmp_path / "0", cluster_id="c", topic="t")
    for number in range(12):  # a record has the first key of its table, and the last one
        store.write({b"t\0" + bytes(8000) + b"%d" % number: b""}, Mark(number, "m"))
        store._db.flush()
    db = tmp_path / "killed"
    db.mkdir()
    for path in (tmp_path / "0" / "db").iterdir():
        if path.name.startswith(("CURRENT", "MANIFEST-")):
            shutil.copy(path, db)
    store.close()
    [path] = db.glob("MANIFEST-*")
    log = path.read_bytes()
    assert len(log) > 2 * 32768
    assert not is_cut_off(db)
    path.write_bytes(log[:-1])
    assert is_cut_off(db)
    path.write_bytes(log[:32768])  # a record's first part is all of it
    assert is_cut_off(db)


class Reading:
    """A definition whose body reads every row of the table."""

    def __init__(self, *, catches: bool) -> None:
        self._catches = catches

    def columns(self, given: Given) -> Mapping[str, str]:
        return {}

    def hops(self, given: Given) -> Sequence[Hop]:
        return (self,)

    def handle(self, record: Change | Forwarded, context: Context) -> None:
        read_all(context.table("t"), catches=self._catches)


def read_all(table: Table, *, catches: bool) -> None:
    try:
        for key in ROWS:
            table.get(key[2:])
    except Exception:
        if not catches:
            raise


def reading_agent(*, catches: bool) -> Definition:
    @agent
    async def reads(change: Change) -> None:
        read_all(table("t"), catches=catches)

    return reads


@pytest.mark.parametrize("kind", [Reading, reading_agent])
@pytest.mark.parametrize("catches", [False, True])
async def test_a_state_that_cannot_be_read_is_no_changes_fault(
    kind: Callable[..., Definition], catches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the body does about it: no row is parked, and nothing of it is committed."""
    damaged(tmp_path / "0")
    store = open_store(tmp_path / "0", cluster_id="c", topic="t")
    monkeypatch.setattr(rehearsal, "MemoryStore", lambda: store)
    log = Log("shop")
    log.table("orders", {"id": "integer"}).create({"id": 1})
    trial = rehearsal.Rehearsal(
        kind(catches=catches), Given("made", ("shop.public.orders",), "out", (), {}), partitions=1
    )
    [record] = [record for records in log.records.values() for record in records]

    async def until_committed() -> None:
        assert await trial.handle(record) == []
        for task, _ in trial._tasks.values():
            await task.commit()

    with pytest.raises(Damaged):
        await until_committed()
    await trial.close()


def test_damage_that_comes_again_is_the_disks(tmp_path: Path) -> None:
    """Reading the state back from Kafka would go on for ever."""
    folder, now_s = tmp_path / "0", 1_000_000.0

    def opened() -> RocksStore:
        return open_store(folder, cluster_id="c", topic="t", clock_s=lambda: now_s)

    for after_s in (0.0, AGAIN_S, AGAIN_S):
        now_s += after_s
        store = opened()
        store.write(ROWS, Mark(7, "seven"))
        store.close()
        spoil(folder, "middle")
        store = opened()  # of the marks only the last one is read, and it is whole
        with pytest.raises(Damaged):
            list(store.scan(b"t\0", reverse=False))
        store.close()
    now_s += AGAIN_S - 1
    for _ in range(2):
        with pytest.raises(FatalError, match=r"the state is damaged.*: again, 60 min after") as raised:
            opened()
    assert "remove the folder" in raised.value.fix
    shutil.rmtree(folder)  # the cure that it names
    opened().close()


def test_a_disk_that_refuses_is_said_and_what_was_committed_stays(tmp_path: Path) -> None:
    """A person must look, and the folder is kept: there is nothing wrong with what is in it."""
    store = open_store(tmp_path / "0", cluster_id="c", topic="t")
    store.write({b"t\0a": b"1"}, Mark(7, "seven"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FatalError, match="the disk refuses the state: IO error") as raised:
            store.write({b"t\0b": b"x" * 100_000}, Mark(8, "eight"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "remove the folder" in raised.value.fix
    with pytest.raises(FatalError):
        Overlay(store).check()
    assert store.mark == Mark(7, "seven")
    store.close()
    again = open_store(tmp_path / "0", cluster_id="c", topic="t")
    assert (again.get(b"t\0a"), again.mark) == (b"1", Mark(7, "seven"))
    again.close()


def test_a_folder_that_is_removed_while_it_is_in_use_is_no_bad_disk(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    store = open_store(folder, cluster_id="c", topic="t")
    store.write(ROWS, Mark(7, "seven"))
    shutil.rmtree(folder)

    def fill() -> None:
        """Its buffer, and then it needs the disk."""
        for number in range(400):
            store.write({b"t\0%d" % number: random.Random(number).randbytes(100_000)}, Mark(8, "eight"))

    with pytest.raises(RetryableError, match="was removed while it was in use") as raised:
        fill()
    assert "stop its worker first" in raised.value.fix
    store.close()
    open_store(folder, cluster_id="c", topic="t").close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "processors").write_text("in the way")
    with pytest.raises(RetryableError, match="the state folder cannot be opened") as raised:
        open_store(tmp_path / "processors" / "0", cluster_id="c", topic="t")
    assert "remove" in raised.value.fix


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "0", cluster_id="c", topic="t").close()
    (tmp_path / "0" / "FORMAT").write_text(json.dumps({"format": 9, "cluster": "c", "topic": "t"}))
    with pytest.raises(FatalError, match="format 9, this program reads 1") as raised:
        open_store(tmp_path / "0", cluster_id="c", topic="t")
    assert "remove the folder" in raised.value.fix
    for path in sorted((tmp_path / "0").rglob("*"), reverse=True):  # the cure that it names
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "0").rmdir()
    open_store(tmp_path / "0", cluster_id="c", topic="t").close()
