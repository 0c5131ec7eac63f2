"""Counts by group and window: both stores count alike, and the command shows what it counted."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumers.reconcile import groups
from consumers.reconcile.groups import Asked, Counts, Tally, grouping_of
from consumers.reconcile.origins.base import Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.sides import postgres as postgres_side
from consumers.reconcile.sides.base import WHOLE
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import make_sides
from streamer.config import Config, parse
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import reconcile

TEXT = """
name: acme
sources:
  shop: {{kind: postgres, url: "{source}", tables: {{"public.*": {{}}}}}}
targets:
  copy: {{kind: postgres, url: "{target}"}}
  lite: {{kind: sql, url: "sqlite:///{file}"}}
flows:
  mirror: {{from: shop.public.link, to: copy.public.link}}
  light: {{from: shop.public.link, to: lite}}
"""
MOMENT_US = int(datetime(2026, 11, 22, 13, tzinfo=UTC).timestamp() * 1_000_000)
WEEK_S = 7 * 86_400.0
COLUMNS = "id bigint PRIMARY KEY, topic text, price numeric, at timestamptz, day date, plain timestamp"
ROWS = [  # topic, price, at; the day and the plain time are those of `at`
    ("a", "1.0", "2026-11-22 13:00:00+00"),
    ("a", "1.00", "2026-11-22 13:00:00.000001+00"),
    ("A", "1.0", "2026-11-15 13:00:00+00"),
    ("a ", "1.0", "2026-11-15 13:00:00.000001+00"),
    ("", "NaN", "2026-11-15 00:00:00+00"),
    (None, None, "infinity"),
    ("é", "0", "-infinity"),
    ("e\u0301", "0", "0044-03-15 12:00:00+00 BC"),
    ("a,b", "0", None),
    ("a", "0", "20260-11-22 00:00:00+00"),
    ("a", "2", "2026-11-20 23:30:00.5+00"),
]


def config_of(source: str, target: str, file: Path) -> Config:
    text = TEXT.format(source=source, target=target, file=file)
    return parse(text, Path("tailrace.yaml"), environ={})


def fill_statements() -> list[str]:
    rows = []
    for number, (topic, price, at) in enumerate(ROWS):
        texts = ["NULL" if text is None else f"'{text}'" for text in (topic, price, at)]
        times = f"{texts[2]}::timestamptz, ({texts[2]}::timestamptz AT TIME ZONE 'UTC')"
        rows.append(f"({number}, {texts[0]}, {texts[1]}, {times}::date, {times.rpartition(', ')[2]})")
    return [f"CREATE TABLE link ({COLUMNS})", f"INSERT INTO link VALUES {', '.join(rows)}"]


def as_apply_writes(text: str | None, *, date: bool = False) -> str | None:
    if text is None or "infinity" in text:
        return text
    era = " BC" if text.endswith(" BC") else ""
    day, clock = text.removesuffix(" BC").removesuffix("+00").split(" ")
    return f"{day}{era}" if date else f"{day}T{clock}Z{era}"


def fill_file(file: Path) -> None:
    with closing(sqlite3.connect(file)) as lite, lite:
        lite.execute(
            "CREATE TABLE link (id INTEGER PRIMARY KEY, topic TEXT COLLATE NOCASE, price TEXT, at TEXT,"
            " day TEXT, plain TEXT)"
        )
        for number, (topic, price, at) in enumerate(ROWS):
            time, day = as_apply_writes(at), as_apply_writes(at, date=True)
            lite.execute(
                "INSERT INTO link VALUES (?, ?, ?, ?, ?, ?)", (number, topic, price, time, day, time)
            )


@pytest.mark.parametrize("flow", ["mirror", "light"])
async def test_both_sides_count_a_row_in_the_same_cells(
    database: str, target_database: str, file: Path, flow: str
) -> None:
    """Also by the texts of the rows, as faults are."""
    await execute(database, *fill_statements())
    await execute(target_database, *fill_statements())
    fill_file(file)
    config = config_of(database, target_database, file)
    for column in ("at", "day", "plain"):
        for by in ((), ("topic",), ("topic", "price")):
            found = await counted(config, flow, Asked(by, column, (WEEK_S, 3_600.0)))
            assert found[0] == found[1] == found[2]
            assert sum(counts[0] for counts in found[0].values()) == len(ROWS)
        # At the moment, and a microsecond later; a date is its day's begin.
        assert found[0]["a", "1.0"] == ([1, 1, 0] if column == "day" else [1, 1, 1])
        assert found[0]["a", "1.00"] == ([1, 1, 0] if column == "day" else [1, 0, 0])


async def counted(config: Config, name: str, asked: Asked) -> tuple[Counts, Counts, Counts]:
    """By the source, by the target, and by the texts of the source's rows."""
    flow = config.flows[name]
    origin, store = make_origin(config, flow), make_store(config, flow)
    await origin.open()
    await store.open()
    try:
        async with aclosing(origin.tables(flow)) as tables:
            table = await anext(tables)
            assert not isinstance(table, Refused)
            sides = await make_sides(table, store, flow, where="", only=())
            compared = sides.compared
            grouping = grouping_of(asked, compared.pairs, compared.notes, table.record, MOMENT_US)
            keys = list(await sides.source.hashes([WHOLE]))
            rows = await sides.source.rows(keys)
            names = [pair.name for pair in compared.pairs]
            tally = Tally(grouping, names)
            for row in rows.values():
                tally.add(row.texts)
            return await sides.source.groups(grouping), await sides.target.groups(grouping), tally.counts
    finally:
        await store.close()
        await origin.close()


async def test_more_groups_than_are_kept_are_not_read(
    database: str, target_database: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (groups, postgres_side):
        monkeypatch.setattr(module, "GROUPS_LIMIT", 3)
    await execute(database, *fill_statements())
    await execute(target_database, *fill_statements())
    found = await counted(config_of(database, target_database, file), "mirror", Asked(("topic",)))
    assert [len(counts) for counts in found] == [4, 4, 4]


LINKS = (
    "CREATE TABLE link (id bigint PRIMARY KEY, topic_id int, published_at timestamptz)",
    "INSERT INTO link SELECT n, n % 5, now() - (n % 40) * interval '1 day' - interval '1 hour'"
    " FROM generate_series(1, 2000) n",
)


@pytest.mark.thorough
async def test_drift_is_given_for_each_group_and_window(pipeline: Pipeline) -> None:
    pipeline.config["reconcile"] = {
        "links": {
            "flow": "mirror",
            "threshold": "1%",
            "group_by": "topic_id",
            "windows": {"column": "published_at", "sizes": ["7d", "15d"]},
        }
    }
    pipeline.write_config()
    await execute(pipeline.source_url, *LINKS)
    await pipeline.start_both()
    await execute(
        pipeline.target_url,
        "DELETE FROM mirror.link WHERE id IN (40, 80)",  # topic 0, an hour old
        "UPDATE mirror.link SET topic_id = 4 WHERE id = 3",
        "UPDATE mirror.link SET published_at = published_at - interval '300 days' WHERE id = 42",  # topic 2
    )
    code, report = await reconcile(pipeline, "links")
    (table,) = report["tables"]
    assert (code, table["verdict"], table["missing"], table["different"]) == (0, "equal", 2, 2)
    found = table["groups"]
    assert (found["group_by"], found["window_column"], found["total"]) == (["topic_id"], "published_at", 15)
    cells = {(*cell["group"], cell["window"]): cell for cell in found["cells"]}
    assert {place: cell["difference"] for place, cell in cells.items() if cell["difference"]} == {
        ("0", None): 2,
        ("0", "7d"): 2,
        ("0", "15d"): 2,
        ("3", None): 1,
        ("3", "7d"): 1,
        ("3", "15d"): 1,
        ("4", None): -1,
        ("4", "7d"): -1,
        ("4", "15d"): -1,
        ("2", "7d"): 1,
        ("2", "15d"): 1,
    }
    assert all(cell["difference"] == cell["missing"] - cell["extra"] for cell in cells.values())
    assert (cells["2", None]["different"], cells["2", "7d"]["missing"]) == (1, 1)
    assert cells["0", None]["source_rows"] == 400
    assert cells["0", None]["drift"] == 2 / 400
    drifts = [cell["drift"] for cell in found["cells"]]
    assert drifts == sorted(drifts, reverse=True)
    assert found["above_threshold"] == sum(drift > 0.01 for drift in drifts) > 0
    # From the command line, and with a column that is not there.
    words = ("mirror", "--window", "1d", "--window-column", "published_at")
    code, report = await reconcile(pipeline, *words, "--group", "id,topic_id", "--columns", "id")
    cell = report["tables"][0]["groups"]["cells"][0]
    assert (cell["group"][0], cell["drift"], len(cell["group"])) in {(n, 1.0, 2) for n in ("40", "80", "3")}
    code, out = await pipeline.run("reconcile", "mirror", "--window", "7d", "--window-column", "published")
    assert code == 64
    assert "did you mean 'published_at'?" in out
    await execute(pipeline.target_url, "ALTER TABLE mirror.link DROP COLUMN topic_id")
    code, out = await pipeline.run("reconcile", "links")
    assert code == 64
    assert "'topic_id', which is not compared in public.link (column 'topic_id' is not in the target" in out
