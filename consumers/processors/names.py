"""The names of what a processor keeps in Kafka. Changing one is a migration."""

from __future__ import annotations

from dataclasses import dataclass

from streamer.changes.topics import clean, dead_letters_topic


@dataclass(frozen=True, slots=True)
class Names:
    """`config`: its `name`."""

    config: str
    processor: str
    out: str

    @property
    def group(self) -> str:
        return f"{clean(self.config)}.{clean(self.processor)}"

    @property
    def state(self) -> str:
        """Every task's state, compacted: partition p is the task's of that number."""
        return f"{self.out}.__state"

    @property
    def control(self) -> str:
        """Floors, and what operators ask of tasks."""
        return f"{self.out}.__floors"

    def hop(self, number: int) -> str:
        """What hop `number` reads, from 1 on."""
        return f"{self.out}.__hop{number}"

    @property
    def dead_letters(self) -> str:
        return dead_letters_topic(self.processor)

    def transactions(self, partition: int) -> str:
        """Of a task; whoever initialises it fences the one before."""
        return f"{self.group}.{partition}"

    def routed(self, table: str | None) -> str:
        """The topic of derived rows; a router names the table."""
        return self.out if table is None else f"{self.out}.{clean(table)}"
