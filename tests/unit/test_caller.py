"""A user's function in its own thread: hanging, exiting, raising what is not an Exception."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from threading import Event
from typing import Any

import pytest

from streamer.caller import Caller, Raised, Running


def same(answer: Any) -> Any:
    return answer


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError(), StopIteration(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
async def test_whatever_is_raised_comes_back(error: BaseException, awaited: bool) -> None:
    def plainly(_: object) -> None:
        raise error

    async def later(_: object) -> None:
        raise error

    caller = Caller(later if awaited else plainly, "t")
    with pytest.raises(Raised) as caught:
        await caller.call(0, same, timeout_s=20)
    if not (awaited and isinstance(error, StopIteration)):  # which a coroutine raises as RuntimeError
        assert isinstance(caught.value.cause, type(error))
    with pytest.raises(Raised):  # the thread lives
        await caller.call(0, same, timeout_s=20)
    caller.close()


async def test_what_is_awaited_is_cancelled_at_its_limit() -> None:
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    caller = Caller(slow, "t")
    with pytest.raises(Raised) as caught:
        await caller.call(100, same, timeout_s=0.02)
    assert isinstance(caught.value.cause, TimeoutError)
    assert await caller.call(0, same, timeout_s=20) == "done"
    caller.close()


async def test_no_second_call_is_made_beside_one_that_runs() -> None:
    let, calls = Event(), []

    def stuck(number: int) -> int:
        calls.append(number)
        let.wait(60)
        return number

    caller = Caller(stuck, "t")
    for number in (1, 2, 3):
        with pytest.raises(Running):
            await caller.call(number, same, timeout_s=0.01)
        caller.close()  # the session is opened again: the call still runs
    assert calls == [1]
    assert caller.running_s > 0.01
    let.set()
    for number in range(4, 2**30):
        with suppress(Running):
            assert await caller.call(number, same, timeout_s=20) == number
            break
        await asyncio.sleep(0)
    caller.close()


def test_the_process_ends_though_a_call_does_not() -> None:
    program = """
import asyncio, time
from streamer.caller import Caller, Running
async def main():
    try:
        await Caller(time.sleep, "t").call(5000, str, timeout_s=0.01)
    except Running:
        print("hangs")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"hangs\n", b"", 0)
