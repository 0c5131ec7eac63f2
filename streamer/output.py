"""What a command prints reaches its reader whole, however slowly that one reads.

Python gives a large write to the system once and forgets what was not taken, where stdout is unbuffered
(`python -u`, PYTHONUNBUFFERED) and a signal comes between, or where whoever shares the pipe has set it
non-blocking. Here the rest follows. Knows nothing of what is printed.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import IO, Any, TextIO


class Patient(io.RawIOBase):
    """A file descriptor for writing, which is left open in the end; waits where it takes nothing now."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """How much of it was taken: a BufferedWriter brings the rest."""
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self._number, select.POLLOUT)
                waiter.poll()


def make_patient() -> None:
    """This process's stdout and stderr. Only for the process of a command: whoever holds the old objects
    goes on with them."""
    sys.stdout = _patient(sys.stdout)
    sys.stderr = _patient(sys.stderr)


def _patient(stream: TextIO) -> TextIO:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # closed, or none of the system's
        return stream
    stream.flush()
    lines = os.isatty(number) or stream is sys.stderr
    raw = io.BufferedWriter(Patient(number))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=lines)


def write_whole(out: IO[bytes], data: bytes) -> None:
    """Also to a stream without a buffer, which may take a part only."""
    rest = memoryview(data)
    while rest:
        taken = out.write(rest)
        rest = rest[taken or 0 :]
