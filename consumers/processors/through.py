"""The end of a reset: once all that the inputs held then has gone through every hop of every task, what is
left of older epochs is known to be derived no more, and a floor in `out` gives it up.

Each task says to every task of the next hop that it has passed; who has heard it of all says the same of its
own hop; from the last hop it goes to task 0, which writes the floor.
"""

from __future__ import annotations

from consumers.processors import control
from consumers.processors.changelog import Epoch
from consumers.processors.outbox import Outbox
from consumers.processors.plan import Plan, Progress
from consumers.processors.state import Overlay, table_prefix

_THROUGH = table_prefix("_through")


class ResetEnd:
    """Of one task; between units."""

    def __init__(
        self, plan: Plan, number: int, epoch: Epoch, overlay: Overlay, outbox: Outbox, progress: Progress
    ) -> None:
        self._plan = plan
        self._number = number
        self._epoch = epoch.epoch
        self._overlay = overlay
        self._outbox = outbox
        self._progress = progress
        said = overlay.get(_THROUGH + b"read") is not None
        self._goals: dict[str, int] = {} if said else dict(epoch.goals)

    @property
    def passed(self) -> bool:
        goals = self._goals
        return bool(goals) and all(
            self._progress.offsets.get(topic, 0) >= goal for topic, goal in goals.items()
        )

    def pass_goals(self) -> None:
        """Once all that the inputs held at the reset has been read, say so to the next hop."""
        if self.passed:
            self._goals = {}
            self._overlay.begin()
            self._overlay.put(_THROUGH + b"read", b"")
            self._announce(0)

    def _announce(self, hop: int) -> None:
        names = self._plan.names
        value = control.dump(control.Through(hop, self._epoch, self._number))
        if hop == len(self._plan.hops) - 1:
            self._outbox.place(names.control, 0, None, value)
        else:
            for partition in range(self._plan.partitions):
                self._outbox.place(names.hop(hop + 1), partition, None, value)
        self._outbox.keep()

    def heard(self, message: control.Message) -> None:
        """When every task has said so, what is left of older epochs is known to be derived no more."""
        if not isinstance(message, control.Through) or message.epoch != self._epoch:
            return
        prefix = _THROUGH + b"%d:" % message.hop
        self._overlay.begin()
        self._overlay.put(prefix + b"%d" % message.partition, b"")
        if sum(1 for _ in self._overlay.scan(prefix)) < self._plan.partitions:
            return
        if message.hop == len(self._plan.hops) - 1:
            self._outbox.floor(message.epoch)
            self._outbox.keep()
        else:
            self._announce(message.hop + 1)
