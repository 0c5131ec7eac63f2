"""What a session knows of its target without asking."""

from __future__ import annotations

from dataclasses import dataclass, field

from consumers.apply.fold import Version
from consumers.targets import postgres_state as state


@dataclass(slots=True)
class Memory:
    """What this session knows of the target without asking. Keys of a partition are written by its
    owner alone, and it is loaded when a partition is taken over, so that it does not grow stale."""

    buried: dict[tuple[str, str, int], Version] = field(default_factory=dict)  # highest tombstone
    flagged: set[tuple[str, str]] = field(default_factory=set)  # (flow, topic) with keys to be read again
    flows: set[str] = field(default_factory=set)  # that are loaded

    async def load(self, connection: state.Connection, flow: str) -> None:
        self.flows.add(flow)
        rows = await (await connection.execute(state.HIGHEST_TOMBSTONES, (flow,))).fetchall()
        for topic, partition, *version in rows:
            epoch, lsn, ordinal = (int(str(part)) for part in version)
            self.buried[flow, str(topic), int(str(partition))] = (epoch, lsn, ordinal)
        rows = await (await connection.execute(state.FLAGGED, (flow,))).fetchall()
        self.flagged.update((flow, str(topic)) for (topic,) in rows)
