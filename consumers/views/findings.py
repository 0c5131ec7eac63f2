"""How grave things are, in one order for all of `status`, and what a person should know. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Grade(IntEnum):
    """The one order of findings, from the least to the worst; documented in docs/status.md."""

    PAST = 0  # it was started again, and runs
    SLOW = 1
    PAUSED = 2
    SET_ASIDE = 3  # values that cannot be used: a topic keeps them, and the rest goes on
    UNDONE = 4  # a backfill or a job that failed, or did not begin: it waits for a person, the stream goes on
    HELD = 5
    AT_RISK = 6  # all goes on, with rows that are missing or not whole, or a disk that fills
    STALLED = 7
    UNKNOWN = 8
    REWOUND = 9
    ERROR = 10


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


RANK = {state: Grade.__members__.get(state.name, Grade.PAST) for state in FlowState}

FINDINGS_FROM = Grade.HELD  # SLOW and PAUSED are told, and are no finding


def is_finding(state: str) -> bool:
    """Whether a flow in this state makes `status` exit 1."""
    return RANK[FlowState(state)] >= FINDINGS_FROM


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know."""

    rank: Grade
    subject: str
    text: str
    counts: bool = True  # for the exit code


def ordered(findings: list[Finding]) -> list[Finding]:
    """The worst first; of one grade as they were found: sources, flows, parts, each as in the config.

    A part that is down is said once, not for each of its flows.
    """
    worst_first = sorted(findings, key=lambda finding: -finding.rank)
    return list({f.text: f for f in reversed(worst_first)}.values())[::-1]
