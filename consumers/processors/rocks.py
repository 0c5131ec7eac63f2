"""State in RocksDB, one folder a task: `<data folder>/processors/<processor>/<partition>/`.

    FORMAT   {"format":1,"cluster":<id>,"topic":<changelog>}
    db/      RocksDB's own files; the mark is the value of the key that no table has

A folder of another format is refused; one of another cluster, or that cannot be read, is made again from the
changelog, as it is only a copy of it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from consumers.processors.state import Mark, after_prefix
from streamer.errors import ConfigError, FatalError, RetryableError

if TYPE_CHECKING:
    from rocksdict import Rdict

FORMAT = 1
WRITE_BUFFER_BYTES = 16 * 2**20  # two a task; a worker of 16 tasks stays below 600 MB
LOG_FILES = 2
_MARK = b"\0mark"
_DAMAGE = ("corruption", "no such file", "file exists", "not a directory")  # as RocksDB says it

_LOCKED = ("while lock file", "lock hold by")  # not any "lock": the folder's name is in the text, too

log = logging.getLogger(__name__)


class Locked(RetryableError):
    """Another process of this machine has the folder open."""


class _Damaged(RetryableError):
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


def open_store(folder: Path, *, cluster_id: str, topic: str) -> RocksStore:
    """Raises FatalError for a folder of another version, ConfigError when RocksDB is not installed,
    RetryableError for one that another process has open, or that the disk or its rights refuse."""
    if not available():
        raise not_installed(str(folder))
    identity = {"format": FORMAT, "cluster": cluster_id, "topic": topic}
    found = _identity(folder)
    if found is not None and found.get("format") != FORMAT:
        raise FatalError(
            f"the state folder has format {found.get('format')}, this program reads {FORMAT}",
            where=str(folder),
            fix="run the version of Tailrace that wrote it; or remove the folder: its state is read again"
            " from Kafka",
        )
    try:
        if found != identity:
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            store = RocksStore(folder / "db")
        except _Damaged as error:
            log.warning("%s", error)
            _remove(folder / "db")
            store = RocksStore(folder / "db")
        (folder / "FORMAT").write_bytes(orjson.dumps(identity))
    except OSError as error:
        raise _refused(folder, str(error)) from error
    return store


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


def _identity(folder: Path) -> dict[str, object] | None:
    try:
        raw = orjson.loads((folder / "FORMAT").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None  # not there, or killed while it was made
    return raw if isinstance(raw, dict) else None


class RocksStore:
    """One database. What is not on the disk after a kill is read again from the changelog."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._db = _open(folder)
        raw = self._db.get(_MARK)
        self.mark: Mark | None = None if raw is None else Mark(*orjson.loads(raw))

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._db.get(key)
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
        self._db.write(batch)
        self.mark = mark

    def clear(self) -> None:
        self._db.close()
        shutil.rmtree(self._folder)
        self._db = _open(self._folder)
        self.mark = None

    def size_bytes(self) -> int:
        tables = self._db.property_int_value("rocksdb.estimate-live-data-size") or 0
        memory = self._db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0
        return tables + memory

    def close(self) -> None:
        self._db.close()


def _open(folder: Path) -> Rdict:
    from rocksdict import Options, Rdict  # noqa: PLC0415  an extra

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(LOG_FILES)
    try:
        return Rdict(str(folder), options)
    except Exception as error:  # rocksdict has no type of its own
        said = str(error).lower()
        if any(sign in said for sign in _DAMAGE):
            raise _Damaged(
                f"the state is damaged, and is read again from Kafka: {error}", where=str(folder)
            ) from error
        if not any(sign in said for sign in _LOCKED):
            raise _refused(folder, str(error)) from error
        raise Locked(
            "another worker on this machine has this task's state open",
            where=str(folder),
            fix="nothing, if it is about to stop; else stop it: two workers of one folder share the tasks",
        ) from error
