"""A task's changelog as the journal of its transactions (see streamer.publisher.hanging). Pure.

When the outputs are acknowledged it gets the offsets that they took, and then the commit record.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.processors.changelog import COMMIT_KEY, wrote_of
from streamer.publisher.hanging import LastOffsets, Record


class Commits:
    """The journal of one task."""

    def recorded(self, standing: Sequence[Record]) -> LastOffsets:
        return wrote_of((record.key, record.value) for record in standing)

    def wrote(self, tail: Sequence[Record], first_offset: int, until: int) -> LastOffsets | None:
        taken: list[tuple[bytes | None, bytes | None]] = []
        for record in tail:
            if first_offset <= record.offset < until:
                taken.append((record.key, record.value))
                if record.key == COMMIT_KEY:
                    return wrote_of(taken)
        return None
