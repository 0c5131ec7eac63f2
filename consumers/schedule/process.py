"""The process of a job's run, or of one of its steps: started, read, waited for, ended with all it began."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from contextlib import suppress

from consumers.control.database import named

LINE_BYTES = 16 * 1024
KILL_AFTER_S = 10.0  # from SIGTERM: a command confirms what it has done within it


class JobProcess:
    """`tail`: where the last lines of its output go."""

    def __init__(self, words: list[str], tail: deque[str]) -> None:
        self._words = words
        self._tail = tail
        self._process: asyncio.subprocess.Process | None = None
        self._over = False  # also of what it has started, as far as that kept its output open

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
        self._process = await asyncio.create_subprocess_exec(
            *self._words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES,
            start_new_session=True,
        )

    async def wait(self) -> int:
        """Its exit code, once its output has ended."""
        process = self._process
        assert process is not None, "it was started"
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than LINE_BYTES: dropped
                continue
            if not line:
                break
            if text := line.decode(errors="replace").rstrip():
                self._tail.append(text)
        code = await process.wait()
        self._over = True
        return code

    def end(self) -> None:
        """SIGTERM to it and to what it has started, and SIGKILL to what is left."""
        if self._signal(signal.SIGTERM):
            asyncio.get_running_loop().call_later(KILL_AFTER_S, self.kill)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> bool:
        """Whether it still ran."""
        if self._process is None or self._over:
            return False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        return True
