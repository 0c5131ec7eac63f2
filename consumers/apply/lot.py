"""What one process knows of the keys that are parked in its partitions. No I/O: the target has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.queues import Count, Key, Queue, queues_of
from consumers.targets.base import Parked


class Lot:
    """`queues`: by place and key. `at`: the checkpoints, as they are in the target. `still`: flows whose keys
    are left alone now."""

    def __init__(self) -> None:
        self.queues: dict[Place, dict[bytes, Queue]] = {}
        self.at: dict[Place, int] = {}
        self.still: set[str] = set()
        self.cluster_id = ""

    def load(self, checkpoints: Mapping[Place, Checkpoint], parked: list[Parked], cluster_id: str) -> None:
        """Partitions that are ours from now on, and what waits there."""
        self.cluster_id = cluster_id
        for place, checkpoint in checkpoints.items():
            self.at[place] = checkpoint.next_offset
            self.queues[place] = {}
        for key, queue in queues_of(parked).items():
            if key.place in self.queues:
                self.queues[key.place][key.key] = queue

    def mark(self, places: Collection[Place], asked: Iterable[Parked]) -> None:
        """What operators ask for of these places' keys now. `asked`: all entries of marked keys."""
        marks = {Key(entry.place, entry.key): entry for entry in asked if entry.asked}
        for place in places:
            for key, queue in self.queues.get(place, {}).items():
                entry = marks.get(Key(place, key))
                action, who = (entry.asked, entry.asked_by) if entry is not None else ("", "")
                if (queue.head.asked, queue.head.asked_by) != (action, who):
                    queue.head = replace(queue.head, asked=action, asked_by=who)

    def keep_only(self, owned: Collection[tuple[str, int]]) -> None:
        """`owned`: (topic, partition). What is another process's now is forgotten."""
        for place in [place for place in self.at if (place.topic, place.partition) not in owned]:
            self.forget(place)

    def forget(self, place: Place) -> None:
        self.at.pop(place, None)
        self.queues.pop(place, None)

    def counts(self) -> dict[str, Count]:
        """By flow, of the partitions that are ours."""
        found: dict[str, Count] = {}
        for place, queues in self.queues.items():
            for queue in queues.values():
                count = found.get(place.flow, Count())
                waiting = queue.head.waiting
                since_us = queue.head.parked_us
                oldest_us = since_us if count.oldest_us is None else min(count.oldest_us, since_us)
                found[place.flow] = Count(count.parked + (not waiting), count.waiting + waiting, oldest_us)
        return found

    @property
    def has_any(self) -> bool:
        return any(self.queues.values())

    @property
    def has_waiting(self) -> bool:
        moving = (queues for place, queues in self.queues.items() if place.flow not in self.still)
        return any(queue.head.waiting for queues in moving for queue in queues.values())

    def waiting(self) -> list[Key]:
        return [
            Key(place, key)
            for place, queues in self.queues.items()
            if place.flow not in self.still
            for key, queue in queues.items()
            if queue.head.waiting
        ]
