"""Whether what a source publishes can reach the target: versions below the target's are refused, all of them.

An epoch is above every one before it, unless Kafka's positions were lost and a clock was wrong. Then the
guard would refuse a whole copy, and all that follows it, and count nothing but `guarded`. Two signs say so:
the source's capture is at a lower epoch than what was applied of it; or all that this process has applied
of a flow was refused, rows of a copy among it. This only tells; `tailrace reset --above` is the cure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from consumers.apply.assemble import Prepared
from consumers.apply.fold import BOTTOM
from consumers.targets.base import Outcome
from streamer.resetting import reset_steps

# Longer than a capture's heartbeat takes to be seen: events of an epoch that has just begun may be faster.
PROOF_S = 8.0


class Epochs:
    """Of one apply process. `epoch_of`: what a flow's capture says that it is at, None when none speaks."""

    def __init__(
        self,
        sources: Mapping[str, str],
        epoch_of: Callable[[str], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sources`: by flow."""
        self._sources = dict(sources)
        self._epoch_of = epoch_of
        self._clock = clock
        self._applied: dict[str, int] = {}  # by flow, the highest
        self._below_s: dict[str, float] = {}  # since when the capture's epoch is below it
        self._refused = dict.fromkeys(sources, 0)  # writes, of flows of which nothing has passed the guard
        self._copied: set[str] = set()  # flows with rows of a copy among them

    def placed(self, flow: str, epoch: int) -> None:
        """The checkpoint of a partition names this epoch, and so does a move of it."""
        self._applied[flow] = max(epoch, self._applied.get(flow, 0))

    def note(self, prepared: Prepared, outcome: Outcome) -> None:
        """A batch is in the target."""
        for move in prepared.batch.moves:
            if move.last is not None:
                self.placed(move.place.flow, move.last.epoch)
        if not self._refused or outcome.lost:
            return
        writes: dict[str, int] = {}
        for changes in prepared.batch.tables:
            if changes.flow not in self._refused:
                continue
            for fold in changes.folds:
                writes[changes.flow] = writes.get(changes.flow, 0) + sum(1 for _ in fold.writes())
                if any(write.change.op == "r" for write in fold.writes()):
                    self._copied.add(changes.flow)
            if changes.floor > BOTTOM and changes.floor[1:] != (0, 0):
                del self._refused[changes.flow]  # a truncate refuses rows that were copied before it
        for flow, count in writes.items():
            if flow not in self._refused:
                continue
            if outcome.guarded.get(flow, 0) < count:
                del self._refused[flow]
            else:
                self._refused[flow] += count

    def findings(self) -> list[str]:
        """To be asked once a second."""
        return [text for flow in self._sources if (text := self._finding(flow))]

    def _finding(self, flow: str) -> str:
        source, applied = self._sources[flow], self._applied.get(flow, 0)
        now, now_s = self._epoch_of(flow), self._clock()
        if now is None or now >= applied:
            self._below_s.pop(flow, None)
        elif now_s - self._below_s.setdefault(flow, now_s) >= PROOF_S:
            return (
                f"flow {flow}: {source} is at epoch {now}, and events of epoch {applied} were applied before:"
                " whatever is captured now counts as older than the target's rows and is refused. To publish"
                f" it above them {reset_steps(source, above=applied)}"
            )
        if flow in self._copied and self._refused.get(flow, 0) and flow not in self._below_s:
            return (
                f"flow {flow}: the target has refused all {self._refused[flow]} rows of the copy of {source}"
                " that it was sent, as older than its own. Look for the highest `_tailrace_epoch` there; to"
                f" publish it above that {reset_steps(source, above='EPOCH')}"
            )
        return ""
