"""The thread that ends a process whose event loop does not turn, and lets one that waits for Kafka alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamer.errors import EXIT_RUNTIME
from tests.harness.pipeline import REPO

PROGRAM = """
import asyncio, sys, time
from types import SimpleNamespace
from consumers.processors.watch import Watch

async def main():
    worker = SimpleNamespace(names=SimpleNamespace(processor="made"))
    told = lambda error: print(error.what, file=sys.stderr, flush=True)
    watch = Watch(worker, stand_still_s=1.0, look_s=0.1, last_word=told)
    await asyncio.sleep(2.5)  # as the start takes, before the watch runs
    print("started", file=sys.stderr, flush=True)
    time.sleep(30)

asyncio.run(main())
"""


@pytest.mark.thorough
def test_a_slow_start_is_no_standstill_and_the_last_word_is_the_reason() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert ended.returncode == EXIT_RUNTIME
    started, *stacks, last = ended.stderr.splitlines()
    assert started == "started"
    assert any("in main" in line for line in stacks)
    assert last == "the event loop stood still for 1 s: the process ends"
