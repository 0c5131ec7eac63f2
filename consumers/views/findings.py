"""The states of a flow from best to worst, and what a person should know, ranked by them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlowState(StrEnum):
    """From best to worst; the order decides what is named first."""

    OK = "OK"
    IDLE = "IDLE"
    SLOW = "SLOW"
    PAUSED = "PAUSED"
    HELD = "HELD"
    STALLED = "STALLED"
    UNKNOWN = "UNKNOWN"
    REWOUND = "REWOUND"
    ERROR = "ERROR"


RANK = {state: rank for rank, state in enumerate(FlowState)}

FINDINGS_FROM = RANK[FlowState.HELD]  # SLOW and PAUSED are told, and are no finding


def is_finding(state: str) -> bool:
    """Whether a flow in this state makes `status` exit 1."""
    return RANK[FlowState(state)] >= FINDINGS_FROM


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know; `rank` orders them, the worst first."""

    rank: int
    subject: str
    text: str
    counts: bool = True  # for the exit code


def without_repeats(findings: list[Finding]) -> list[Finding]:
    """A part that is down is said once, not for each of its flows."""
    return list({f.text: f for f in reversed(findings)}.values())[::-1]
