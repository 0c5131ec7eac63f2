"""A process that applies a batch and is killed between its rows and its checkpoint.

python -m tests.conformance.victim '{"kind": .., "address": ..}'
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
from typing import Any

from consumers.testing import Log
from tests.conformance.adapters import ADAPTERS
from tests.conformance.adapters.base import SOURCE
from tests.conformance.sessions import people, person, session

START_US = 1_700_000_000_000_000


def log_of_the_victim() -> Log:
    """The same in both processes. The first record of each partition is applied before the kill."""
    log = Log(SOURCE, clock_us=lambda: START_US)
    table = people(log)
    for step in range(5):
        for number in range(40):
            table.update(person(number, f"v{step if number % 5 >= step else number % 5}"))
    for number in range(0, 40, 4):
        table.delete(person(number))
    return log


async def die(kind: str, address: str) -> None:
    adapter = ADAPTERS[kind](address)
    assert adapter.killed_at is not None
    module_name, function = adapter.killed_at.split(":")
    module = importlib.import_module(module_name)

    async def killed(*args: Any, **_: Any) -> None:
        await adapter.before_the_kill(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_in_a_thread(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # An adapter that names what is not there must fail, not survive.
    is_async = asyncio.iscoroutinefunction(getattr(module, function))
    setattr(module, function, killed if is_async else killed_in_a_thread)
    async with session(adapter, log=log_of_the_victim()) as s:
        await s.apply()


if __name__ == "__main__":
    asyncio.run(die(**json.loads(sys.argv[1])))
