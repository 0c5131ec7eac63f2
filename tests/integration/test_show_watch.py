"""`status --watch` and `lag --watch` as a person runs them: in a terminal, and read line by line as JSON."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from streamer.cli import EXIT_INTERRUPTED
from streamer.status import State, StatusWriter

WAIT_S = 60
CONFIG = """
name: {name}
kafka: {{brokers: "{brokers}"}}
sources:
  shop: {{kind: postgres, url: "postgresql://u:p@127.0.0.1:1/db", tables: {{"public.*": {{}}}}}}
targets:
  copy: {{kind: postgres, url: "postgresql://u:p@127.0.0.1:1/db"}}
flows:
  mirror: {{from: "shop.public.*", to: copy.mirror}}
"""
OTHER_SCREEN, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
APART_US = 900_000  # a line a second


class Watching:
    """One command and what it has drawn; `read` is the terminal's end, or a pipe's."""

    def __init__(self, process: subprocess.Popen[bytes], read: int) -> None:
        self.process = process
        self.all = self.shown = b""
        self._read = read

    async def until(self, wanted: bytes) -> None:
        """Until it has been written since the last call."""
        async with asyncio.timeout(WAIT_S):
            while wanted not in self.shown:
                self.shown += await asyncio.to_thread(os.read, self._read, 65536)
        self.all, self.shown = self.all + self.shown, b""

    async def interrupted(self) -> int:
        """As Ctrl-C does it; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return await asyncio.to_thread(self.process.wait, WAIT_S)


@contextmanager
def watching(config: Path, command: str, *options: str, terminal: bool) -> Iterator[Watching]:
    read, write = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "consumers", command, "--watch", *options, "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(write)
    try:
        yield Watching(process, read)
    finally:
        process.kill()
        process.wait()
        os.close(read)


@pytest.fixture
def config(tmp_path: Path, kafka: str, kafka_name: str) -> Path:
    path = tmp_path / "tailrace.yaml"
    path.write_text(CONFIG.format(name=kafka_name, brokers=kafka))
    return path


async def test_frames_follow_the_heartbeats_until_ctrl_c(config: Path, kafka: str, kafka_name: str) -> None:
    with (
        watching(config, "status", terminal=True) as status,
        watching(config, "lag", "--json", terminal=False) as lag,
    ):
        await status.until(OTHER_SCREEN)
        await status.until(b"has not run yet")
        await lag.until(b"\n")
        writer = StatusWriter(kafka, None, kafka_name, kind="capture", part_name="shop", interval_s=0.1)
        async with writer:
            writer.update(state=State.STREAMING)
            await status.until(b"streaming")
            await lag.until(b"\n")
        assert await status.interrupted() == EXIT_INTERRUPTED
        assert await lag.interrupted() == EXIT_INTERRUPTED
        await status.until(BACK)  # the terminal is as it was
    first, *_, last = (orjson.loads(line) for line in lag.all.splitlines())
    assert first["name"] == last["name"] == kafka_name
    assert last["at_us"] - first["at_us"] >= APART_US
