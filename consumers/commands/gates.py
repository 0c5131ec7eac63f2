"""`tailrace approve FLOW` and `tailrace refuse FLOW`: what a person decides of held changes.

The decision is written into the target; the flow's apply processes look for it once a second.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import typer
import uvloop

from consumers.apply.gate_texts import DELETES, decision_of, detail_of, text_of
from consumers.apply.gates import APPROVED, HELD, POLL_S, REFUSED
from consumers.asker import operator
from consumers.commands.parked import opened
from consumers.targets.base import Gate, Target
from streamer.changes.topics import dead_letters_topic
from streamer.cli import print_json
from streamer.config import Config, MemoryTarget, load
from streamer.config.base import no_such
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError

NOTED_S = 2 * POLL_S  # what apply holds is in the target by then
LOOK_S = 0.2
LATELY_S = 3600.0  # who finds nothing held may have been about to decide what somebody else has just decided


def decide(path: Path, flow: str, state: str, *, as_json: bool) -> int:
    """`state`: approved or refused. The exit code: 1 when nothing was held."""
    config = load(path)
    if flow not in config.flows:
        raise no_such("flow", flow, config.flows, config.path)
    decided = uvloop.run(decide_held(config, flow, state))
    lately = [] if decided else uvloop.run(decided_lately(config, flow))
    if as_json:
        shown = {"gates": decided, "decided_before": lately}
        print_json(
            {"flow": flow, "state": state, **{k: [_plain(g) for g in gates] for k, gates in shown.items()}}
        )
    elif not decided:
        typer.echo(f"flow {flow} holds nothing (what is held, `tailrace status` shows)")
    for gate in [] if as_json else lately:
        typer.echo(f"{gate.topic} of flow {flow} was {decision_of(gate)}: {text_of(gate)}")
    for gate in [] if as_json else decided:
        typer.echo(f"{state} {gate.topic} of flow {flow}: {text_of(gate)}; {_outcome(config, gate)}")
    return EXIT_OK if decided else EXIT_FINDING


async def decide_held(config: Config, flow: str, state: str) -> list[Gate]:
    """The gates as they are now; none: nothing was held. Raises TargetUnavailable, ConfigError."""
    name = config.flows[flow].target
    if isinstance(config.targets.get(name), MemoryTarget):
        raise ConfigError(
            f"the target {name!r} is in the memory of the process that applies: nobody else can decide",
            where=str(config.path),
            fix="in a test: `await target.decide(...)` with that process's own session",
        )
    async with opened(config, name) as target:
        held = await _held(target, flow)
        now_us = time.time_ns() // 1000
        # The clock of the machine that captured may be ahead: what was seen to be held is meant in any case.
        up_to_us = max([now_us, *(gate.up_to_us for gate in held)])
        return await target.decide(flow, state, operator(), up_to_us)


async def decided_lately(config: Config, flow: str) -> list[Gate]:
    """Within LATELY_S. Raises TargetUnavailable, ConfigError."""
    since_us = time.time_ns() // 1000 - round(LATELY_S * 1e6)
    async with opened(config, config.flows[flow].target) as target:
        gates = [gate for gate in await target.gates() if gate.flow == flow]
    return [gate for gate in gates if gate.state in (APPROVED, REFUSED) and gate.up_to_us > since_us]


async def _held(target: Target, flow: str) -> list[Gate]:
    """What waits; a hold that apply has only just begun gets a moment to be noted."""
    deadline_s = time.monotonic() + NOTED_S
    while True:
        held = [gate for gate in await target.gates() if gate.flow == flow and gate.state == HELD]
        if held or time.monotonic() > deadline_s:
            return held
        await asyncio.sleep(LOOK_S)


def _outcome(config: Config, gate: Gate) -> str:
    if gate.state == APPROVED:
        return "it passes" if gate.kind != DELETES else "they pass"
    letters = f"in the topic {dead_letters_topic(config.flows[gate.flow].target)}"
    if gate.kind == DELETES:
        return f"they are dropped, each with a record {letters}; the rows stay"
    return f"it is dropped, with a record {letters}; the rows stay"


def _plain(gate: Gate) -> dict[str, Any]:
    return {
        **detail_of(gate),
        "state": gate.state,
        "up_to_us": gate.up_to_us,
        "decided_by": gate.decided_by,
        "text": text_of(gate),
    }
