"""The process of a job's run, or of one of its steps: started, read, waited for, ended with all it began.

It is over when it has ended: who keeps its output open beyond that is waited for no longer than a moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from contextlib import suppress

from consumers.control.database import named
from consumers.schedule.warden import KILL_AFTER_S, signal_all

LINE_BYTES = 16 * 1024
LAST_WORDS_S = 1.0  # after its end: what it has written is there, and is read in milliseconds


class JobProcess:
    """`tail`: where the last lines of its output go."""

    def __init__(self, words: list[str], tail: deque[str]) -> None:
        self._words = words
        self._lines = _Lines(tail)
        self._reading: asyncio.ReadTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._over = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def name(self) -> str:
        """As the control database names processes; empty while there is none that could be waited for."""
        process = self._process
        return "" if process is None or process.returncode is not None else named(process.pid)

    async def start(self) -> None:
        """Raises OSError."""
        output, its_output = os.pipe()
        try:
            self._reading, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: self._lines, os.fdopen(output, "rb", buffering=0)
            )
            self._process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=its_output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(its_output)

    async def wait(self) -> int:
        """Its exit code, with its last words read."""
        process = self._process
        assert process is not None, "it was started"
        code = await process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._lines.ended.wait()
        self._over = True
        self._close()
        return code

    def end(self) -> None:
        """SIGTERM to it and to what it has started, and SIGKILL to what is left."""
        if self._signal(signal.SIGTERM):
            asyncio.get_running_loop().call_later(KILL_AFTER_S, self.kill)

    def kill(self) -> None:
        """Nothing more of it is read."""
        self._signal(signal.SIGKILL)
        self._close()

    def _signal(self, number: signal.Signals) -> bool:
        """Whether it still ran."""
        if self._process is None or self._over:
            return False
        with suppress(ProcessLookupError):
            signal_all(self._process.pid, number)
        return True

    def _close(self) -> None:
        if self._reading is not None:
            self._reading.close()


class _Lines(asyncio.Protocol):
    """Lines from a pipe, as they come; one that is longer than LINE_BYTES is dropped."""

    def __init__(self, tail: deque[str]) -> None:
        self._tail = tail
        self._rest = b""
        self._drops = False  # the rest of a line that is too long
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LINE_BYTES:
            self._rest, self._drops = b"", True

    def connection_lost(self, exc: Exception | None) -> None:
        self._take(self._rest)
        self._rest = b""
        self.ended.set()

    def _take(self, line: bytes) -> None:
        drops, self._drops = self._drops or len(line) > LINE_BYTES, False
        if not drops and (text := line.decode(errors="replace").rstrip()):
            self._tail.append(text)
