"""State in RocksDB, one folder a task: `<data folder>/processors/<processor>/<partition>/`, or another beside
it where a process that is frozen has that one.

    LOCK     locked by whoever has the folder; RocksDB's own lock says so only once it has read its files
    FORMAT   {"format":1,"cluster":<id>,"topic":<changelog>,"made_again_s":<unix time, 0: never>}
    DAMAGED  is there: what is in db/ was found damaged
    db/      RocksDB's own files; the mark is the value of the key that no table has

A folder of another format is refused; one of another cluster, or that is damaged, is made again from the
changelog, as it is only a copy of it. Damage that shows in use ends the process: what it has read by then may
be too little. Where it comes again soon, or the disk refuses, it is a person's to mend.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from consumers.processors import manifest
from consumers.processors.folder_lock import FolderLock, Taken
from consumers.processors.state import Mark, after_prefix
from streamer.errors import ConfigError, FatalError, RetryableError, TailraceError

if TYPE_CHECKING:
    from rocksdict import Rdict

FORMAT = 1
WRITE_BUFFER_BYTES = 16 * 2**20  # two a task; a worker of 16 tasks stays below 600 MB
LOG_FILES = 2
AGAIN_S = 3600.0  # damage that comes again within it is the disk's: reading all back would go on for ever
_MARK = b"\0mark"
_DAMAGE = ("corruption", "no such file", "file exists", "not a directory")  # as RocksDB says it
_REFUSAL = "io error"
_FORMAT_FILE, _DAMAGED_FILE = "FORMAT", "DAMAGED"

_LOCKED = ("while lock file", "lock hold by")  # not any "lock": the folder's name is in the text, too

log = logging.getLogger(__name__)


class Locked(RetryableError):
    """Another process of this machine has the folder open."""


class Damaged(RetryableError):
    """What is in the folder is no whole database."""


def available() -> bool:
    try:
        import rocksdict  # noqa: F401, PLC0415  an extra
    except ImportError:
        return False
    return True


def not_installed(where: str) -> ConfigError:
    return ConfigError(
        "RocksDB is not installed, and state in memory is read from Kafka as a whole at every start",
        where=where,
        fix="pip install 'tailrace[rocksdb]'; or say --yes to keep the state in memory",
    )


def open_store(
    folder: Path, *, cluster_id: str, topic: str, clock_s: Callable[[], float] = time.time
) -> RocksStore:
    """Raises FatalError for a folder of another version, or that is damaged again and again, ConfigError when
    RocksDB is not installed, RetryableError for one that another process has open, or that the disk or its
    rights refuse."""
    if not available():
        raise not_installed(str(folder))
    try:
        lock = _lock(folder)
        try:
            return _open_locked(
                folder, lock, {"format": FORMAT, "cluster": cluster_id, "topic": topic}, clock_s
            )
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        raise _refused(folder, str(error)) from error


def _lock(folder: Path) -> FolderLock:
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return FolderLock(folder)
    except Taken as taken:
        raise _held(folder, taken.pid) from None


def remove_unused(folder: Path) -> None:
    """A copy of the state that was made while another process had the folder's."""
    if not folder.is_dir():
        return
    try:
        lock = FolderLock(folder)
    except (Taken, OSError):
        return
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _open_locked(
    folder: Path, lock: FolderLock, identity: Mapping[str, Any], clock_s: Callable[[], float]
) -> RocksStore:
    found = _identity(folder) or {}
    made_again_s: float = found.pop("made_again_s", 0.0)
    if found and found.get("format") != FORMAT:
        raise FatalError(
            f"the state folder has format {found.get('format')}, this program reads {FORMAT}",
            where=str(folder),
            fix="run the version of Tailrace that wrote it; or remove the folder: its state is read again"
            " from Kafka",
        )
    if found != identity:
        _remove(folder / _FORMAT_FILE)
        _remove(folder / "db")
        _remove(folder / _DAMAGED_FILE)
        made_again_s = 0.0
    try:
        store = _open_whole(folder, lock)
    except Damaged as error:
        _check_disk(folder, clock_s() - made_again_s, error)
        log.warning("%s: %s; it is read again from Kafka", folder, error.what)
        made_again_s = clock_s()
        (folder / _DAMAGED_FILE).touch()  # until all of it is gone
        _remove(folder / "db")
        _remove(folder / _DAMAGED_FILE)
        store = RocksStore(folder, lock)
    (folder / _FORMAT_FILE).write_bytes(orjson.dumps({**identity, "made_again_s": made_again_s}))
    return store


def _open_whole(folder: Path, lock: FolderLock) -> RocksStore:
    """Raises Damaged also for what RocksDB does not notice, or not at once, or what it hangs at."""
    if (folder / _DAMAGED_FILE).exists():
        raise _damaged(folder, "it was found so before")
    if manifest.is_cut_off(folder / "db"):
        raise _damaged(folder, "its MANIFEST is cut off")
    return RocksStore(folder, lock)


def _check_disk(folder: Path, since_s: float, error: Damaged) -> None:
    """Raises FatalError: reading everything back has not helped."""
    if 0 <= since_s < AGAIN_S:
        raise FatalError(
            f"{error.what}: again, {since_s / 60:.0f} min after it was made again",
            where=str(folder),
            fix="look at the disk, which does not give back what was written (dmesg, smartctl); on a good"
            " one, or to try it once more, remove the folder: its state is read again from Kafka",
        ) from error


def _damaged(folder: Path, why: object) -> Damaged:
    return Damaged(
        f"the state is damaged: {why}",
        where=str(folder),
        fix="nothing: the next start reads it again from Kafka",
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refused(folder: Path, why: str) -> RetryableError:
    return RetryableError(
        f"the state folder cannot be opened: {why}",
        where=str(folder),
        fix="give the disk room, or the worker the right to write there; or remove the folder: its state is"
        " read again from Kafka",
    )


def _identity(folder: Path) -> dict[str, Any] | None:
    try:
        raw = orjson.loads((folder / _FORMAT_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None  # not there, or killed while it was made
    return raw if isinstance(raw, dict) else None


class RocksStore:
    """One database. What is not on the disk after a kill is read again from the changelog.

    Each call raises Damaged, or FatalError where the disk refuses; from then on it is the `failure`.
    """

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        """`lock`: is given back by `close`."""
        self.failure: TailraceError | None = None
        self._folder = folder
        self._lock = lock
        self._db = _open(folder)
        try:
            raw = self.get(_MARK)
        except BaseException:
            self._close()
            raise
        self.mark: Mark | None = None if raw is None else Mark(*orjson.loads(raw))

    def get(self, key: bytes) -> bytes | None:
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:  # rocksdict has no type of its own, here and below
            raise self._failed(error) from error
        return found

    def scan(self, prefix: bytes, *, reverse: bool, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        snapshot = self._db.snapshot()  # what is written meanwhile is not seen
        places = snapshot.iter()
        if not reverse:
            places.seek(first or prefix)
        elif (end := after_prefix(prefix)) is None:
            places.seek_to_last()
        else:
            places.seek_for_prev(end)
            if places.valid() and places.key() == end:
                places.prev()
        step = places.prev if reverse else places.next
        while places.valid():
            key: bytes = places.key()
            if not key.startswith(prefix):
                return
            yield key, places.value()
            step()
        try:
            places.status()  # what cannot be read looks like the end
        except Exception as error:
            del step, places, snapshot  # they hold the database open for as long as the error is known
            raise self._failed(error) from error

    def write(self, changes: Mapping[bytes, bytes | None], mark: Mark | None) -> None:
        from rocksdict import WriteBatch  # noqa: PLC0415  an extra

        batch = WriteBatch(raw_mode=True)
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if mark is None:
            batch.delete(_MARK)
        else:
            batch.put(_MARK, orjson.dumps(list(mark)))
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._failed(error) from error
        self.mark = mark

    def clear(self) -> None:
        self._close()
        try:
            _remove(self._folder / "db")
        except OSError as error:
            raise _refused(self._folder, str(error)) from error
        self._db = _open(self._folder)
        self.mark = None

    def size_bytes(self) -> int:
        tables = self._db.property_int_value("rocksdb.estimate-live-data-size") or 0
        memory = self._db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0
        return tables + memory

    def close(self) -> None:
        try:
            self._close()
        finally:
            self._lock.close()

    def _close(self) -> None:
        try:
            self._db.close()
        except Exception as error:
            if self.failure is None:  # else it is told, and this is the same
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> Exception:
        """What to raise. A body may catch it, so it is kept; and the next process is to know."""
        folder, said = self._folder, str(error).lower()
        found: TailraceError
        if not folder.is_dir():
            found = RetryableError(
                "the state's folder was removed while it was in use",
                where=str(folder),
                fix="nothing: the next start reads the state again from Kafka; to remove one, stop its worker"
                " first",
            )
        elif any(sign in said for sign in _DAMAGE):
            found = _damaged(folder, error)
            try:
                (folder / _DAMAGED_FILE).touch()
            except OSError as refused:
                found = _broken(folder, f"{error}; and {refused}")
        elif _REFUSAL in said:
            found = _broken(folder, str(error))
        else:
            return error
        self.failure = self.failure or found
        return found


def _held(folder: Path, pid: int | None = None) -> Locked:
    who = "another worker on this machine" if pid is None else f"process {pid} of this machine"
    return Locked(
        f"{who} has this task's state open",
        where=str(folder),
        fix="nothing, if it is about to stop; else end it: two workers of one folder share the tasks",
    )


def _broken(folder: Path, why: str) -> FatalError:
    return FatalError(
        f"the disk refuses the state: {why}",
        where=str(folder),
        fix="look at the disk (df, dmesg, smartctl); once it is good, start again; where a file of it stays"
        " unreadable, remove the folder: its state is read again from Kafka",
    )


def _open(folder: Path) -> Rdict:
    from rocksdict import Options, Rdict  # noqa: PLC0415  an extra

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(LOG_FILES)
    try:
        return Rdict(str(folder / "db"), options)
    except Exception as error:
        said = str(error).lower()
        if any(sign in said for sign in _DAMAGE):
            raise _damaged(folder, error) from error
        if not any(sign in said for sign in _LOCKED):
            raise _refused(folder, str(error)) from error
        raise _held(folder) from error
