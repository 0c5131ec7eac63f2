"""What rows are counted by: groups of columns, and windows of time that end at one moment. Pure.

A cell is a group and one of its windows, or all of its rows. A row is in a cell by its canonical texts
(docs/digest.md), so that both sides put one row into the same cell. A cell's drift is that of the rows that
the fence has judged, each in the cells that its own values name: two counts of two moments differ by what
is on its way, and say nothing by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from consumers.reconcile.fast import Pair
from streamer.changes.schema import SchemaRecord
from streamer.config.base import nearest
from streamer.errors import ConfigError

GROUPS_LIMIT = 100_000  # of a side: they are held in memory, some hundred bytes each
WINDOW_KINDS = ("date", "timestamp", "timestamptz")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))

Group = tuple[str | None, ...]  # canonical texts, in the order of Grouping.by
Texts = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """As a job and the command line ask for it: the source's names, sizes in seconds."""

    by: tuple[str, ...] = ()
    column: str = ""  # of the windows
    sizes_s: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.by or self.sizes_s)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.by, *([self.column] if self.sizes_s else [])]))


@dataclass(frozen=True, slots=True)
class Window:
    """The rows whose column is later than `low` and not later than `high`: instants in UTC, as a timestamp's
    canonical text has them. Such texts are in the order of time for the years of four digits, and a date's
    is before those of its day. What is no such text (infinity, a year BC) is in no window."""

    name: str
    low: str
    high: str

    def has(self, text: str | None) -> bool:
        if text is None or text[4:5] != "-":
            return False
        return self.low < text.removesuffix("+00") <= self.high


@dataclass(frozen=True, slots=True)
class Grouping:
    """`by` and `column`: compared names; the latter is empty without windows. `moment_us`: where they end."""

    by: tuple[str, ...]
    column: str
    windows: tuple[Window, ...]
    moment_us: int


Counts = dict[Group, list[int]]  # rows of each cell: all of the group, then by window


def grouping_of(
    asked: Asked, pairs: Sequence[Pair], notes: Sequence[str], record: SchemaRecord, moment_us: int
) -> Grouping:
    """`pairs`: what is compared; `notes`: what is not, and why. Raises ConfigError for a column that is not
    there, is not compared, or is no time."""
    for name in asked.by:
        _check(name, "group_by (--group)", pairs, notes, record)
    if asked.sizes_s:
        _check_time(asked.column, pairs, notes, record)
    windows = tuple(_window(size_s, moment_us) for size_s in dict.fromkeys(asked.sizes_s))
    return Grouping(asked.by, asked.column if windows else "", windows, moment_us)


def _check(name: str, asked: str, pairs: Sequence[Pair], notes: Sequence[str], record: SchemaRecord) -> None:
    names = [pair.name for pair in pairs]
    if name in names:
        return
    where = f"{record.schema}.{record.table}"
    if name not in {column.name for column in record.columns}:
        raise ConfigError(f"{asked} names {name!r}, which {where} does not have", fix=nearest(name, names))
    about = [note for note in notes if f"{name!r}" in note] or notes[:1]
    why = f" ({about[0]})" if about else ""
    raise ConfigError(
        f"{asked} names {name!r}, which is not compared in {where}{why}",
        fix=f"rows are counted by what both sides have: {', '.join(names)}",
    )


def _check_time(name: str, pairs: Sequence[Pair], notes: Sequence[str], record: SchemaRecord) -> None:
    asked = "windows.column (--window-column)"
    _check(name, asked, pairs, notes, record)
    pair = next(pair for pair in pairs if pair.name == name)
    for place, column in (("source", pair.source), ("target", pair.target)):
        if column.held.kind not in WINDOW_KINDS or column.form.kind not in WINDOW_KINDS:
            raise ConfigError(
                f"{asked} names {name!r}, which is of type {column.held.type} in the {place}:"
                " a window is of a date, a timestamp or a timestamptz",
                fix="name a column that is a time on both sides",
            )


def _window(size_s: float, moment_us: int) -> Window:
    moment = datetime.fromtimestamp(moment_us // 1_000_000, UTC).replace(microsecond=moment_us % 1_000_000)
    return Window(window_name(size_s), _instant(moment - timedelta(seconds=size_s)), _instant(moment))


def _instant(at: datetime) -> str:
    """As PostgreSQL prints a timestamp: without zeros at the end of a fraction."""
    text = at.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{at.microsecond:06}".rstrip("0") if at.microsecond else text


def window_name(size_s: float) -> str:
    """As it would be written: 7d, 36h."""
    for unit, length_s in _UNITS:
        if size_s % length_s == 0:
            return f"{size_s / length_s:.0f}{unit}"
    return f"{size_s:g}s"


class Places:
    """Where a row belongs, by the texts of its columns `names`."""

    def __init__(self, grouping: Grouping, names: Sequence[str]) -> None:
        self._by = [names.index(name) for name in grouping.by]
        self._column = names.index(grouping.column) if grouping.windows else -1
        self._windows = grouping.windows

    def group(self, texts: Texts) -> Group:
        return tuple([texts[at] for at in self._by])

    def windows(self, texts: Texts) -> list[int]:
        """0: all rows; then by number."""
        if self._column < 0:
            return [0]
        text = texts[self._column]
        return [0, *(at for at, window in enumerate(self._windows, 1) if window.has(text))]

    def cells(self, texts: Texts | None) -> set[tuple[Group, int]]:
        if texts is None:
            return set()
        group = self.group(texts)
        return {(group, at) for at in self.windows(texts)}


class Tally:
    """The counts of a side that has no query language: its rows are given one by one."""

    def __init__(self, grouping: Grouping, names: Sequence[str]) -> None:
        """`names`: of the rows' texts."""
        self._places = Places(grouping, names)
        self._zeros = [0] * (1 + len(grouping.windows))
        self.counts: Counts = {}

    @property
    def full(self) -> bool:
        """There are more groups than are counted, and what comes now is not."""
        return len(self.counts) > GROUPS_LIMIT

    def add(self, texts: Texts) -> None:
        group = self._places.group(texts)
        counts = self.counts.get(group)
        if counts is None:
            if self.full:
                return
            counts = self.counts[group] = self._zeros.copy()
        for at in self._places.windows(texts):
            counts[at] += 1


MISSING, EXTRA, DIFFERENT = 0, 1, 2


@dataclass(slots=True)
class Drift:
    """The judged faults of each cell: missing, extra, different. Bounded by the suspects of a table."""

    cells: dict[tuple[Group, int], list[int]] = field(default_factory=dict)

    def add(self, places: Places, source: Texts | None, target: Texts | None) -> None:
        """One fault. A row whose values put it into another cell of the target is missing in the one and
        extra in the other."""
        ours, theirs = places.cells(source), places.cells(target)
        for cell in ours | theirs:
            kind = DIFFERENT if cell in ours and cell in theirs else MISSING if cell in ours else EXTRA
            self.cells.setdefault(cell, [0, 0, 0])[kind] += 1

    def dump(self) -> list[Any]:
        return [[list(group), at, counts] for (group, at), counts in self.cells.items()]

    @classmethod
    def load(cls, raw: Iterable[Any]) -> Drift:
        return cls({(tuple(group), at): list(counts) for group, at, counts in raw})

    def of(self, group: Group, at: int) -> Sequence[int]:
        return self.cells.get((group, at), (0, 0, 0))

    def groups(self) -> Mapping[Group, None]:
        return dict.fromkeys(group for group, _ in self.cells)
