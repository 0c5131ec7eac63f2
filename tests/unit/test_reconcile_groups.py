"""Groups and windows: where a row is counted, what of it is drift, and what a person is shown."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from consumers.reconcile import cells as module
from consumers.reconcile import groups
from consumers.reconcile.cells import cells_of, cells_table
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.fast import Pair
from consumers.reconcile.forms import Form, Held
from consumers.reconcile.groups import (
    Asked,
    Counts,
    Drift,
    Grouping,
    Places,
    Tally,
    grouping_of,
    window_name,
)
from consumers.reconcile.sides.base import Key, Row
from consumers.reconcile.sides.spooled import Found, SpooledSide
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import ConfigError

MOMENT = datetime(2026, 11, 22, 13, 0, 0, 500_000, UTC)
MOMENT_US = int(MOMENT.timestamp() * 1_000_000)
NAMES = ["id", "topic", "at"]


def pair(name: str, kind: str, target: str = "") -> Pair:
    kinds = (kind, target or kind)
    ours, theirs = (SqlColumn(f'"{name}"', Held(k, k), Form(k)) for k in kinds)
    return Pair(name, ours, theirs, name)


PAIRS = [pair("id", "number"), pair("topic", "text"), pair("at", "timestamptz"), pair("day", "date", "text")]
RECORD = SchemaRecord(
    "shop",
    "public",
    "links",
    "d",
    tuple(Column(name, "text", -1, "text", name == "id") for name in ("id", "topic", "at", "day", "later")),
)


def asked(*by: str, column: str = "at", sizes_s: tuple[float, ...] = (7 * 86_400.0,)) -> Grouping:
    return grouping_of(Asked(by, column, sizes_s), PAIRS, ["column 'later' comes"], RECORD, MOMENT_US)


def row(number: int, topic: str | None, age: timedelta | None) -> tuple[str | None, ...]:
    if age is None:
        return str(number), topic, None
    at = MOMENT - age
    text = at.strftime("%Y-%m-%d %H:%M:%S")
    return str(number), topic, (f"{text}.{at.microsecond:06}".rstrip("0") if at.microsecond else text) + "+00"


def tally(rows: list[tuple[str | None, ...]], grouping: Grouping) -> Counts:
    found = Tally(grouping, NAMES)
    for each in rows:
        found.add(each)
    return found.counts


WEEK, TICK = timedelta(days=7), timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("age", "within"),
    [
        (timedelta(0), True),
        (-TICK, False),  # later than the run's start
        (WEEK - TICK, True),
        (WEEK, False),
        (timedelta(seconds=0.5), True),  # a whole second is before its fractions
        (timedelta(days=9_000), False),
        (None, False),
    ],
)
def test_a_window_ends_at_the_moment_and_is_open_at_its_start(age: timedelta | None, *, within: bool) -> None:
    places = Places(asked("topic"), NAMES)
    assert places.windows(row(1, "a", age)) == ([0, 1] if within else [0])


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("2026-11-22", True),  # a date begins its day
        ("2026-11-15", False),
        ("2026-11-16", True),
        ("infinity", False),
        ("-infinity", False),
        ("20260-11-20 00:00:00", False),
        ("0044-11-20 00:00:00 BC", False),
    ],
)
def test_texts_of_other_times(text: str, *, within: bool) -> None:
    assert asked("topic").windows[0].has(text) is within


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)), st.sampled_from([1.0, 60.5, 86_400.0, 3e9]))
def test_a_window_compares_texts_as_times(at: datetime, size_s: float) -> None:
    (window,) = asked(sizes_s=(size_s,)).windows
    text = at.isoformat(" ")
    text = text.rstrip("0") if at.microsecond else text
    expected = MOMENT - timedelta(seconds=size_s) < at.replace(tzinfo=UTC) <= MOMENT
    assert window.has(text) is expected


def test_sizes_are_named_as_they_are_written() -> None:
    assert [window_name(s) for s in (604_800, 129_600, 90, 60, 1.5)] == ["7d", "36h", "90s", "1m", "1.5s"]


def test_on_a_quiet_table_counts_differ_by_what_is_missing_and_extra() -> None:
    """In every cell, also where a fault moves a row into another one."""
    grouping = asked("topic", sizes_s=(86_400.0, 7 * 86_400.0))
    hour, month = timedelta(hours=1), timedelta(days=30)
    source = [row(1, "a", hour), row(2, "a", month), row(3, "b", hour), row(4, None, None), row(5, "", hour)]
    target = [row(1, "a", hour), row(3, "a", hour), row(4, None, hour), row(5, "", month), row(6, "b", hour)]
    places, drift = Places(grouping, NAMES), Drift()
    ours, theirs = ({r[0]: r for r in rows} for rows in (source, target))
    for key in ours.keys() | theirs.keys():
        if ours.get(key) != theirs.get(key):
            drift.add(places, ours.get(key), theirs.get(key))
    drift = Drift.load(drift.dump())
    counts = [tally(rows, grouping) for rows in (source, target)]
    found = cells_of(grouping, *counts, drift, 0.0)
    assert found.total == len(found.listed) == 4 * 3
    assert all(cell.difference == cell.missing - cell.extra for cell in found.listed)
    by_cell = {(cell.group, cell.window): cell for cell in found.listed}
    moved = by_cell[("a",), None]  # 3 came, 2 is gone
    assert (moved.missing, moved.extra, moved.different, moved.drift) == (1, 1, 0, 1.0)
    assert by_cell[("",), "1d"].missing == 1
    assert by_cell[("",), None].different == 1
    assert by_cell[(None,), "7d"].extra == 1
    assert found.above == sum(cell.drift > 0 for cell in found.listed)
    assert [cell.drift for cell in found.listed] == sorted((c.drift for c in found.listed), reverse=True)


def test_counts_that_differ_without_a_judged_row_are_no_drift() -> None:
    grouping = asked("topic")
    found = cells_of(grouping, {("a",): [5, 1]}, {("a",): [3, 0], ("b",): [1, 1]}, Drift(), 0.0)
    assert [(cell.group, cell.difference) for cell in found.listed] == [
        (("a",), 2),
        (("a",), 1),
        (("b",), -1),
        (("b",), -1),
    ]
    assert {cell.drift for cell in found.listed} == {0.0}
    assert found.above == 0


def test_without_groups_the_table_is_one_also_when_it_is_empty() -> None:
    found = cells_of(asked(), {}, {}, Drift(), 0.0)
    assert [(cell.group, cell.window, cell.source_rows) for cell in found.listed] == [
        ((), None, 0),
        ((), "7d", 0),
    ]


def test_a_screen_shows_the_worst_and_says_how_many_there_are() -> None:
    grouping = asked("topic", column="", sizes_s=())
    drift = Drift()
    drift.add(Places(grouping, NAMES), row(1, "[red]bad", None), None)
    counts = {(f"g{n:02}",): [n] for n in range(40)} | {("[red]bad",): [1]}
    found = cells_of(grouping, counts, dict(counts), drift, 0.0)
    console = Console(file=StringIO(), width=90)
    console.print(cells_table(found, "groups"))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    first = next(line for line in lines if "%" in line)
    assert "[red]bad" in first
    assert "100.00%" in first
    assert sum("%" in line for line in lines) == module.SHOWN
    assert " ".join(" ".join(lines[-2:]).split()).endswith("the worst 20 of 41; --json lists 41")
    assert len(found.plain(limit=3)["cells"]) == 3


@pytest.mark.parametrize(
    ("by", "column", "message", "fix"),
    [
        (("topik",), "at", r"group_by \(--group\) names 'topik', which public.links does not", "'topic'"),
        (("later",), "at", r"names 'later', which is not compared .* \(column 'later' comes\)", "id, topic"),
        (("topic",), "att", r"windows.column \(--window-column\) names 'att'", "did you mean 'at'?"),
        (("topic",), "topic", "which is of type text in the source", "a time on both sides"),
        (("topic",), "day", "which is of type text in the target", "a time on both sides"),
    ],
)
def test_a_column_that_cannot_be_counted_by_is_named(
    by: tuple[str, ...], column: str, message: str, fix: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        asked(*by, column=column)
    assert fix in caught.value.fix


class Listed:
    """A store that gives its rows in batches, some of them twice, as a scan of Redis does."""

    place, read_bytes = "a list", 0

    def __init__(self, *batches: list[tuple[str | None, ...]]) -> None:
        self._batches = batches

    def names(self) -> list[str]:
        return NAMES

    async def all_rows(self) -> AsyncGenerator[list[Found], None]:
        for batch in self._batches:
            yield [((texts[0] or "",), texts) for texts in batch]

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        return {}


async def test_a_store_without_a_query_language_is_read_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    hour, month = timedelta(hours=1), timedelta(days=30)
    first, second = [row(1, "a", hour), row(2, "b", month)], [row(2, "b", month), row(3, None, hour)]
    side = SpooledSide(Listed(first, second))
    assert await side.groups(asked("topic")) == {("a",): [1, 1], ("b",): [1, 0], (None,): [1, 1]}
    assert await side.groups(asked()) == {(): [3, 2]}
    monkeypatch.setattr(groups, "GROUPS_LIMIT", 1)
    assert len(await side.groups(asked("topic"))) == 2
    await side.close()
