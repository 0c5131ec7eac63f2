"""A task's changelog as the journal of its transactions (see streamer.publisher.hanging). Pure.

The commit record is written last, when the outputs are acknowledged, and says which offsets they took.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from consumers.processors.changelog import COMMIT_KEY, Commit
from streamer.publisher.hanging import LastOffsets, Record


class Commits:
    """The journal of one task."""

    def recorded(self, standing: Sequence[Record]) -> LastOffsets:
        found = commits(standing)
        return found[-1].wrote if found else {}

    def wrote(self, tail: Sequence[Record], first_offset: int, until: int) -> LastOffsets | None:
        whole = commits(record for record in tail if first_offset <= record.offset < until)
        return whole[0].wrote if whole else None


def commits(records: Iterable[Record]) -> list[Commit]:
    """The commit records among them."""
    return [
        Commit.load(record.value, f"{record.topic}[{record.partition}]@{record.offset}")
        for record in records
        if record.key == COMMIT_KEY and record.value is not None
    ]
