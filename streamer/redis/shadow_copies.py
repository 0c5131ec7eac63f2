"""Which file beside the process is this capture's copy of the shadow: the first that no process has.

Owns the names of the files and their locks, which the kernel drops with the process. A capture that was
stopped for so long that another took its turn still has its file, and may wake up at any moment: the
other one makes a copy of its own from the topic, and waits for nobody. What is in the files is not known
here.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from streamer.errors import FatalError, RetryableError
from streamer.logs import Log

log = Log(__name__)

COPIES_LIMIT = 4  # processes of one source on one host, all but one of them asleep: each is disk that is lost


@contextmanager
def own_copy(folder: Path, source: str) -> Iterator[Path]:
    """The path of a copy that is ours until the end. Copies that nobody has any more are removed.

    Raises RetryableError: sleeping processes have all of them; FatalError: the folder cannot be used.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = [
                folder / f"{source}.{n}.db" if n else folder / f"{source}.db" for n in range(COPIES_LIMIT)
            ]
            path = next((path for path in paths if _take(path, held)), None)
            if path is None:
                raise RetryableError(
                    f"{COPIES_LIMIT} captures of {source} on this host stand still, and each has a copy of "
                    "the shadow open",
                    where=str(folder),
                    fix="continue or kill the stopped `tailrace capture` processes (ps: state T)",
                )
            if path != paths[0]:
                log.warning(
                    "a capture that stands still has the shadow's copy: another one is made", path=str(path)
                )
            for other in paths[1:]:
                with ExitStack() as briefly:
                    if other != path and other.exists() and _take(other, briefly):
                        discard(other)
        except OSError as error:
            raise FatalError(
                f"the shadow's folder cannot be used: {error}", where=str(folder), fix="mend its rights"
            ) from error
        yield path


def discard(path: Path) -> None:
    """Remove a copy: it is made anew from the topic, or by a first scan."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _take(path: Path, held: ExitStack) -> bool:
    """Lock it until `held` ends. The lock's file stays: removed, two could have one each."""
    file: TextIO = path.with_suffix(".lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return False
        raise
    held.enter_context(file)
    return True
