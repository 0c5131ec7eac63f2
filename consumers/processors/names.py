"""The names of what a processor keeps in Kafka. Changing one is a migration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamer.changes.topics import TOPIC_NAME_LIMIT, clean, dead_letters_topic
from streamer.errors import BadRecordError

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]|_(?=x)")  # a dot, too: Kafka has no a.b beside an a_b
_OWN = ("__", "_tailrace")  # how names of topics and tables of ours begin
_DEAD_LETTERS = "dead_letters"  # beside `out` that is a processor's or a target's name, too


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
        return self.out if table is None else f"{self.out}.{table}"


def routed_table(value: object, out: str) -> str:
    """The table that a router's value names: another one for each value, as a topic's name can hold it. What
    is not a letter, a digit, '_' or '-' is written as SQL/XML does, `_x0020_` for a space.

    Raises BadRecordError: no text, an empty one, too long, or a name of ours.
    """
    where = f"derived topic {out}.*"
    if type(value) is int:
        value = str(value)  # a year, say
    if not isinstance(value, str) or not value:
        what = "nothing" if value is None else "an empty text" if value == "" else f"a {type(value).__name__}"
        raise BadRecordError(
            f"a row is routed to {what}, and not to a table",
            where=where,
            fix="give every row a text that names its table, or leave the row out",
        )
    table = _UNSAFE.sub(lambda found: f"_x{ord(found[0]):04X}_", value)
    if table.startswith(_OWN) or table == _DEAD_LETTERS:
        raise BadRecordError(
            f"a row is routed to {value!r}, which is a name of Tailrace's own",
            where=where,
            fix=f"name its table otherwise: not {_DEAD_LETTERS}, and not beginning with {' or '.join(_OWN)}",
        )
    if len(out) + 1 + len(table) > TOPIC_NAME_LIMIT:
        raise BadRecordError(
            f"a row is routed to {value[:60]!r}..., and no topic can have so long a name",
            where=where,
            fix=f"route by shorter texts: {TOPIC_NAME_LIMIT} characters with `out`, as they are written",
        )
    return table
