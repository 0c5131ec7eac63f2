"""Agents that tests name by import path."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from consumers.processors import Change, Changes, Derived, Row, agent


@agent
async def doubled(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        if change.after is None:
            yield change.to()
        else:
            yield twice(change)


def twice(change: Change) -> Derived:
    assert change.after is not None
    return change.to(after={**change.after, "twice": 2 * change.after["n"]})


@agent(columns={"n": "int"})
async def large(change: Change) -> Row | None:
    assert change.after is not None
    return change.after if change.after["n"] >= 10 else None


@agent
async def blocking(changes: Changes) -> AsyncIterator[Derived]:
    """As `doubled`, but it sleeps, and everything with it, while there is a file beside the logs."""
    while (Path(sys.argv[1]).parent / "block").exists():
        time.sleep(0.1)  # noqa: ASYNC251  the fault that is tested
    async for change in changes:
        yield change.to() if change.after is None else twice(change)


@agent
async def matching(changes: Changes) -> AsyncIterator[Derived]:
    """As `doubled`, but a pattern that takes years keeps Python's lock while there is a file there."""
    async for change in changes:
        if (Path(sys.argv[1]).parent / "block").exists():
            re.match(r"(a+)+$", "a" * 64 + "b")
        yield change.to() if change.after is None else twice(change)


async def bare(changes: Changes) -> None:
    """No agent."""
