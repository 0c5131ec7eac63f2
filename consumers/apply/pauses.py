"""Paused flows: a person has one wait, and it writes nothing until somebody has it go on.

The target keeps who, when and why, beside what gates hold, so that no process forgets it. `Pauses` is what
one apply process knows of that. Checkpoints stand, partitions stay assigned and are read no further, and what
was read ahead is dropped: when the flow goes on, that is read again. What stops partitions is the reader.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from consumers.targets.base import Gate, Target
from streamer.errors import ConfigError

KIND = "pause"  # of a gate that stands for all topics of its flow
PAUSED, RESUMED = "paused", "resumed"
POLL_S = 1.0  # a wish is followed within it, and the batch in the target
WHY_LIMIT = 200  # characters: it is a line of `status`, and a field of each heartbeat
NEAR = 0.5  # of the topics' retention: time enough left for a person to decide

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pause:
    """What was asked last of a flow. `paused` False: to go on."""

    flow: str
    paused: bool
    who: str
    why: str
    at_us: int

    @classmethod
    def of(cls, gate: Gate) -> Pause:
        who, _, why = gate.decided_by.partition(": ")
        return cls(gate.flow, gate.state == PAUSED, who, why, gate.since_us)

    @property
    def gate(self) -> Gate:
        """As targets keep it: no approval or refusal is of it."""
        state = PAUSED if self.paused else RESUMED
        by = f"{self.who}: {self.why}" if self.why else self.who
        return Gate(self.flow, "", KIND, state, 0, 0, self.at_us, decided_by=by)

    @property
    def text(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"by {self.who} at {utc_text(self.at_us)}{why}"

    @property
    def reason(self) -> str:
        """For `status`."""
        return f"{self.text}; `tailrace resume {self.flow}` has it go on"

    @property
    def detail(self) -> dict[str, Any]:
        """For the heartbeat, see docs/status.md."""
        return {"by": self.who, "why": self.why, "since_us": self.at_us}


def utc_text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def pauses_of(gates: Iterable[Gate]) -> dict[str, Pause]:
    """By flow, what was asked last."""
    return {gate.flow: Pause.of(gate) for gate in gates if gate.kind == KIND}


def paused_in(gates: Iterable[Gate], flow: str) -> Pause | None:
    """The flow's, while it is paused."""
    found = pauses_of(gates).get(flow)
    return found if found is not None and found.paused else None


def written_at_once(pause: Pause) -> ConfigError:
    """Of what a person asks for that writes rows of a paused flow without its apply processes."""
    return ConfigError(
        f"flow {pause.flow!r} was paused {pause.text}, and this would write rows of it now",
        fix=f"`tailrace resume {pause.flow}` first; or replay it without an end and without keys, which it"
        " does when it goes on",
    )


class Pauses:
    """Of the flows of one apply process."""

    def __init__(self, flows: Collection[str], target: Target) -> None:
        self._flows = frozenset(flows)
        self._target = target
        self._known: dict[str, Pause] = {}  # as the target has them
        self._loaded = False
        self.out: set[str] = set()  # nothing is read or written of them: paused, or not placed again yet

    def paused(self) -> dict[str, Pause]:
        return {flow: pause for flow, pause in self._known.items() if pause.paused}

    def resumed(self) -> set[str]:
        """Flows that may go on, and are not placed again yet."""
        return {flow for flow in self.out if not (flow in self._known and self._known[flow].paused)}

    def go_on(self, flow: str) -> None:
        """Nothing is on its way that leaves it out."""
        self.out.discard(flow)

    async def load(self) -> None:
        """Before anything is placed. Raises TargetUnavailable."""
        if not self._loaded:
            await self.poll()

    async def poll(self) -> None:
        """With the target's session held. Raises TargetUnavailable."""
        found = {flow: p for flow, p in pauses_of(await self._target.gates()).items() if flow in self._flows}
        for flow, pause in self._known.items():
            if flow not in found:  # a store that was emptied: what was asked holds still
                await self._target.hold(pause.gate)
                found[flow] = pause
        for flow, pause in found.items():
            if pause.paused != (flow in self._known and self._known[flow].paused):
                log.warning("flow %s: %s %s", flow, "paused" if pause.paused else "resumed", pause.text)
        self._known = found
        self.out.update(self.paused())
        self._loaded = True

    def findings(
        self,
        waiting: Mapping[str, int],
        gone: Mapping[str, int],
        retention_s: float,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> list[str]:
        """`waiting`: records by flow; `gone`: those that their topics have lost before they were applied."""
        found = []
        for flow, pause in sorted(self.paused().items()):
            paused_s = now_us() / 1e6 - pause.at_us / 1e6
            if records := gone.get(flow):
                found.append(
                    f"flow {flow} is paused, and retention has removed {records:,} records that it has not"
                    f" applied\n  -> `tailrace resume {flow}` says which backfill brings their rows"
                )
            elif (records := waiting.get(flow)) and paused_s > NEAR * retention_s:
                kept = f"its topics keep them for {retention_s / 3600:,.1f} h, and what is older is lost"
                found.append(
                    f"flow {flow} is paused for {paused_s / 3600:,.1f} h, {records:,} records wait: {kept}"
                    f"\n  -> `tailrace resume {flow}` before that, or raise `kafka.topics.retention`"
                )
        return found
