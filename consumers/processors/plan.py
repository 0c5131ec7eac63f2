"""What all tasks of a processor have in common, a task's progress, and a unit to do. No I/O."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from consumers.processors.context import Change, Forwarded, Hop
from consumers.processors.key_forms import KeyForms
from consumers.processors.names import Names
from consumers.processors.parked import Item


def allow_long_numbers() -> None:
    """To the process: a numeric has up to 147,455 digits, and Python's guard against texts of strangers,
    which stops at 4,300, would refuse it in helpers and in users' functions alike."""
    sys.set_int_max_str_digits(0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What all tasks of a processor have in common."""

    names: Names
    inputs: tuple[str, ...]
    key: tuple[str, ...]
    hops: Sequence[Hop]
    key_forms: KeyForms
    partitions: int
    message_bytes: int
    retention_s: float  # of topics

    @property
    def hop_topics(self) -> dict[str, int]:
        return {self.names.hop(number): number for number in range(1, len(self.hops))}

    @property
    def topics(self) -> tuple[str, ...]:
        """All that a task reads."""
        return (*self.inputs, self.names.control, *self.hop_topics)


@dataclass(slots=True)
class Work:
    """A unit to do. `offset` of a row that a floor covers: -1. `next_offset`: set when it is done."""

    hop: int
    record: Change | Forwarded
    topic: str
    key: bytes
    value: bytes | None
    offset: int
    next_offset: int | None = None
    note: bytes | None = None
    parked: Item | None = None
    supersedes: bool = False  # what is parked of its key


@dataclass(slots=True)
class Counts:
    """Since the task began."""

    done: int = 0
    derived: int = 0
    dropped: int = 0  # not newer than what was there
    refused: int = 0
    commits: int = 0
    commit_us: int = 0  # of the newest input event that was committed
    committed_at_us: int = 0
    topics: dict[str, int] = field(default_factory=dict)

    @property
    def handled(self) -> int:
        """Units, whatever became of them: each moves it."""
        return self.done + self.dropped + self.refused


@dataclass(slots=True)
class Progress:
    """Of one task since its last commit. `offsets`, `seen`: as a Commit's."""

    offsets: dict[str, int]
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    handled: int = 0  # records
    newest_us: int = 0  # commit time of the newest input event
