"""Changes that come a second time: what the target has lost behind our back, and what a person replays.

A store that was emptied, replaced, or restored from a backup has lost rows; a replay has lost none.

Its checkpoints tell, as they go with the rows: one that is lower than it was left, or gone, takes its
partition back to where it is now. A partition with a batch finds that when the target refuses the batch; the
keeper looks after the others. This owns what is said of it, and up to where changes come a second time. The
next process learns that from the group's commits (streamer.binding), since the store knows nothing of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from aiokafka import TopicPartition

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.targets.base import Look

SHOWN_S = 600.0  # a finding stays so long after the last loss: what is applied again may take a moment only
NAMED = 3  # partitions that a finding names

log = logging.getLogger(__name__)


class Losses:
    """Of one apply process. `look_for` comes with the target's session held."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._id = ""  # of the store, when it was looked at last
        self._refused: dict[Place, int] = {}  # where we had it, of places whose move was refused
        self._ends: dict[Place, int] = {}  # up to where places come again
        self._again: dict[TopicPartition, int] = {}  # ... as the process before this one has left it
        self._replays: dict[Place, tuple[int, int]] = {}  # from where, to where
        self._lost: dict[str, dict[Place, tuple[int, int]]] = {}  # by flow: from where, to where
        self._lost_s: dict[str, float] = {}

    def look_for(self, look: Look, at: Mapping[Place, int]) -> set[str]:
        """`at`: checkpoints as we know them. Gives topics to be placed again."""
        replaced = self._id not in ("", look.id)
        self._id = look.id
        return {place.topic for place, held in at.items() if replaced or look.stands.get(place, 0) < held}

    def refused(self, place: Place, held: int) -> None:
        """The target has it elsewhere than `held`, where it was when we last read or moved it there: moved on
        by another process, or lost. The next placing shows it.

        Never what a batch expected: one that follows on a batch in the target expects what that one may not
        have written, as when a killed process's last transaction is committed after we read its checkpoint.
        """
        self._refused[place] = max(held, self._refused.get(place, 0))

    def come_again(self, until: Mapping[TopicPartition, int]) -> None:
        """What the group's commits say, before the first placing."""
        self._again = dict(until)

    def commits(
        self, partitions: Iterable[TopicPartition], at: Mapping[Place, int]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """By partition, what every flow has applied, and up to where it comes again; 0: it does not.

        The lowest of its flows', since what one of them holds or has not read must not pass for applied.
        """
        by_partition: dict[TopicPartition, list[Place]] = {partition: [] for partition in partitions}
        for place in at:
            by_partition.get(TopicPartition(place.topic, place.partition), []).append(place)
        found = {}
        for partition, places in by_partition.items():
            if places:
                lowest = min(at[place] for place in places)
                until = min(max(at[place], self._lost_until(place)) for place in places)
                found[partition] = lowest, until if until > lowest else 0
        return found

    def _lost_until(self, place: Place) -> int:
        """Of a replay the target knows by itself."""
        return 0 if place in self._replays else self._ends.get(place, 0)

    def placed(self, checkpoints: Mapping[Place, Checkpoint], at: Mapping[Place, int]) -> None:
        """`at`: where they were, as far as we know."""
        found: dict[str, dict[Place, tuple[int, int]]] = {}
        for place, checkpoint in checkpoints.items():
            again = self._again.get(TopicPartition(place.topic, place.partition), 0)
            again = again if again > self._ends.get(place, 0) else 0  # else it is known, and said
            held = max(at.get(place, 0), self._refused.pop(place, 0), again)
            until = checkpoint.replay_until
            if checkpoint.next_offset < until:
                self._ends[place] = max(until, self._ends.get(place, 0))
                if self._replays.get(place, (0, 0))[1] != until or checkpoint.next_offset < held:
                    span = {place: (checkpoint.next_offset, until)}
                    log.warning("flow %s: %s", place.flow, _replayed(span))
                self._replays[place] = checkpoint.next_offset, until
            if checkpoint.next_offset < held and held > until:
                found.setdefault(place.flow, {})[place] = checkpoint.next_offset, held
                self._ends[place] = max(held, self._ends.get(place, 0))
        for flow, places in found.items():
            self._lost.setdefault(flow, {}).update(places)
            self._lost_s[flow] = self._clock()
            log.warning("%s", self._text(flow, places))

    def passed(self, place: Place) -> int:
        """Changes before this offset come again."""
        return self._ends.get(place, 0)

    def stays(self, place: Place) -> bool:
        """What comes again is in the target still, where it has not been deleted since."""
        return place in self._replays

    def findings(self, at: Mapping[Place, int]) -> list[str]:
        """`at`: checkpoints now. What was lost and is applied again, and for a time what was."""
        for place in [p for p, end in self._ends.items() if at.get(p, -1) >= end]:
            del self._ends[place]
            self._replays.pop(place, None)
        coming = {place.flow for place in self._ends if place in at}  # the others are another process's now
        before_s = self._clock() - SHOWN_S
        for flow in [f for f, lost_s in self._lost_s.items() if lost_s < before_s and f not in coming]:
            del self._lost[flow], self._lost_s[flow]
            self._ends = {place: end for place, end in self._ends.items() if place.flow != flow}
        return [self._text(flow, places) for flow, places in sorted(self._lost.items())]

    def rewound(self, at: Mapping[Place, int]) -> dict[str, str]:
        """Flows that stand before a place that they had passed, and why: as of the last `findings`."""
        found: dict[str, str] = {}
        replays: dict[str, dict[Place, tuple[int, int]]] = {}
        for place, end in self._ends.items():
            if at.get(place, end) < end:
                found[place.flow] = "what the target has lost is applied again from Kafka's log"
                if place in self._replays:
                    replays.setdefault(place.flow, {})[place] = self._replays[place]
        return found | {flow: _replayed(places) for flow, places in replays.items()}

    @staticmethod
    def _text(flow: str, places: Mapping[Place, tuple[int, int]]) -> str:
        return (
            f"flow {flow}: the target has lost rows that were written to it ({_named(places)}): it"
            " was emptied, replaced, or restored from a backup; they are applied again from Kafka's log"
        )


def _replayed(places: Mapping[Place, tuple[int, int]]) -> str:
    return (
        f"replayed as a person has asked ({_named(places)}); newer rows stay as they are, and it goes on by"
        " itself"
    )


def _named(places: Mapping[Place, tuple[int, int]]) -> str:
    named = [
        f"{p.topic}[{p.partition}] from offset {held} back to {now}"
        for p, (now, held) in sorted(places.items())[:NAMED]
    ]
    return ", ".join(named) + (f" and {len(places) - NAMED} more partitions" if len(places) > NAMED else "")
