"""`tailrace pause FLOW...` and `tailrace resume FLOW...`: a person has flows wait, and go on.

The wish is written into the target; the flow's apply processes look for it once a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import uvloop

from consumers.apply.pauses import WHY_LIMIT, Pause, pauses_of
from consumers.asker import operator
from consumers.commands.parked import opened
from streamer.cli import print_json
from streamer.config import Config, MemoryTarget, load
from streamer.config.base import no_such
from streamer.errors import EXIT_OK, ConfigError


def act(path: Path, flows: Sequence[str], *, paused: bool, why: str, as_json: bool) -> int:
    """The exit code. What is so already stays as it is, with who and when."""
    config = load(path)
    for flow in flows:
        if flow not in config.flows:
            raise no_such("flow", flow, config.flows, config.path)
    if len(why) > WHY_LIMIT or not why.isprintable():
        raise ConfigError(
            f"--why is one line of at most {WHY_LIMIT} characters", fix="write the rest where people look"
        )
    done = uvloop.run(ask(config, flows, paused=paused, why=why))
    if as_json:
        print_json([_plain(flow, *each) for flow, each in done.items()])
        return EXIT_OK
    for flow, (pause, is_new) in done.items():
        typer.echo(_said(pause, is_new) if pause is not None else f"flow {flow} is not paused")
    if paused and any(is_new for _, is_new in done.values()):
        typer.echo(
            "within two seconds, and the batch in hand, nothing more is written; the place is kept, and"
            f" `tailrace resume {' '.join(done)}` goes on from there"
        )
    return EXIT_OK


Done = Mapping[str, tuple[Pause | None, bool]]  # as it is now, and whether that is news


async def ask(config: Config, flows: Sequence[str], *, paused: bool, why: str = "", who: str = "") -> Done:
    """Raises TargetUnavailable, ConfigError; the flows of other targets may be paused already by then."""
    done: dict[str, tuple[Pause | None, bool]] = {}
    by_target: dict[str, list[str]] = {}
    for flow in dict.fromkeys(flows):
        by_target.setdefault(config.flows[flow].target, []).append(flow)
    for name in by_target:
        if isinstance(config.targets.get(name), MemoryTarget):
            raise ConfigError(
                f"the target {name!r} is in the memory of the process that applies: nobody else can pause it",
                where=str(config.path),
                fix="in a test: `await target.hold(Pause(...).gate)` with that process's own session",
            )
    for name, its in by_target.items():
        async with opened(config, name) as target:
            known = pauses_of(await target.gates())
            for flow in its:
                before = known.get(flow)
                if (before is not None and before.paused) == paused:
                    done[flow] = before, False
                    continue
                pause = Pause(flow, paused, who or operator(), why, time.time_ns() // 1000)
                await target.hold(pause.gate)
                done[flow] = pause, True
    return {flow: done[flow] for flow in dict.fromkeys(flows)}


def _said(pause: Pause, is_new: bool) -> str:
    flow = pause.flow
    if not is_new:
        state = "is paused already," if pause.paused else "is not paused: it was resumed"
        return f"flow {flow} {state} {pause.text}"
    if pause.paused:
        return f"flow {flow} is paused"
    return f"flow {flow} goes on from where it was: `tailrace lag --watch`"


def _plain(flow: str, pause: Pause | None, is_new: bool) -> dict[str, Any]:
    paused = pause is not None and pause.paused
    return {"flow": flow, "paused": paused, "changed": is_new, **({} if pause is None else pause.detail)}
