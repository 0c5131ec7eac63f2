"""Which flows a run compares, and what it says of names and jobs that it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.commands.reconcile import Wish, reconcile
from consumers.reconcile.forms import Held
from consumers.reconcile.groups import Asked
from consumers.reconcile.job import check_alone, jobs_of
from consumers.reconcile.mapping import Incomparable, Target, compared_columns
from consumers.reconcile.report import Counts, Report, TableReport, log_lines
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Config, Flow, parse
from streamer.errors import ConfigError

TEXT = """
name: acme
sources:
  shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}
  game: {{kind: redis, url: "redis://h", entities: {{players: {{pattern: "p:{{id}}", type: hash}}}}}}
targets:
  copy: {{kind: postgres, url: "postgresql://u@h/d"}}
  cache: {{kind: redis, url: "redis://h"}}
flows:
  mirror: {{from: shop.public.*, to: copy.mirror}}
  orders: {{from: shop.public.orders, to: copy.own.orders{flow}}}
  keys: {{from: shop.public.keys, to: cache}}
  board: {{from: game.players, to: copy.game}}
reconcile:
  nightly: {{flow: orders, threshold: 1%, log: health.log{job}}}
"""


def config(*, flow: str = "", job: str = "") -> Config:
    return parse(TEXT.format(flow=flow, job=job), Path("tailrace.yaml"), environ={})


def test_without_names_every_flow_is_compared_as_its_job() -> None:
    jobs = jobs_of(config(), [])
    assert [(job.name, job.flow.name, job.threshold) for job in jobs] == [
        ("mirror", "mirror", 0.0),
        ("nightly", "orders", 0.01),
        ("keys", "keys", 0.0),
        ("board", "board", 0.0),
    ]
    assert [job.refused for job in jobs] == ["", "", "", ""]


def test_a_name_is_a_job_or_a_flow() -> None:
    assert [(job.name, job.log) for job in jobs_of(config(), ["orders", "nightly", "orders"])] == [
        ("orders", None),
        ("nightly", Path("health.log")),
    ]


@pytest.mark.parametrize(("name", "fix"), [("nightli", "'nightly'"), ("miror", "'mirror'"), ("x", "mirror")])
def test_an_unknown_name_names_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match="there is no job or flow") as caught:
        jobs_of(config(), [name])
    assert fix in caught.value.fix


def test_a_job_says_what_is_counted_and_what_spares_the_source() -> None:
    asked = config(
        job=", group_by: topic, windows: {column: day, sizes: [7d, 1h]}, limits: {rate: 100/s, max_lag: 1m}"
    )
    (job,) = jobs_of(asked, ["nightly"])
    assert job.counted == Asked(("topic",), "day", (604_800.0, 3_600.0))
    assert (job.rate, job.max_lag_s) == (100.0, 60.0)
    (job,) = jobs_of(config(job=", group_by: [topic, day]"), ["nightly"])
    assert job.counted == Asked(("topic", "day"))
    assert not jobs_of(asked, ["mirror"])[0].counted


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ("{sizes: [7d]}", "column"),
        ("{column: day, sizes: []}", "sizes"),
        ("{column: day, sizes: [10ms]}", "sizes"),
        ("{column: day, sizes: [5000w, 6000w]}", "sizes"),
        ("{column: day, sizes: [week]}", "is not a duration"),
    ],
)
def test_windows_that_are_none_are_named(windows: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(job=f", windows: {windows}")
    assert "windows" in str(caught.value)


def test_a_condition_is_of_one_flow() -> None:
    check_alone(jobs_of(config(), ["orders", "nightly"]), "--where")
    with pytest.raises(ConfigError, match="--where is about one flow's columns, and this run has 4 flows"):
        check_alone(jobs_of(config(), []), "--where")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish([], rate="fast"), "--limit-rate 'fast' is not a rate"),
        (Wish([], threshold="200%"), "--threshold '200%' is not a share"),
        (Wish([], wait="soon"), "--wait 'soon' is not a duration"),
        (Wish([], max_lag="late"), "--max-lag 'late' is not a duration"),
        (Wish(["orders"], window=["7"] * 11), "--window takes up to 10 sizes"),
        (Wish(["orders"], window=["0"]), "--window takes up to 10 sizes of a second"),
        (Wish(["orders"], window=["7d"]), "--window needs a column, and the file names none"),
        (Wish(["orders"], window_column="day"), "--window-column needs a window"),
        (Wish([], group="day"), "--group is about one flow's columns"),
        (Wish(["orders"], where="id = 5) or (1=1"), r"the condition is no expression: its '\)'"),
    ],
)
def test_a_value_that_is_none_is_named(tmp_path: Path, wish: Wish, message: str) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(TEXT.format(flow="", job=""))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        reconcile(path, wish, as_json=True)


# What a flow makes of a table

RECORD = SchemaRecord(
    "shop",
    "public",
    "orders",
    "d",
    (
        Column("id", "integer", -1, "number", True),
        Column("name", "text", -1, "text", False),
        Column("made", "date", -1, "date", False),
    ),
)
THERE = Target(
    {"id": Held("number", "integer"), "name": Held("text", "text"), "tenant": Held("text", "text")},
    [frozenset({"id", "tenant"})],
)


def flow(keys: str) -> Flow:
    return config(flow=keys).flows["orders"]


def test_what_is_not_compared_is_said_by_name() -> None:
    found = compared_columns(flow(""), RECORD, THERE)
    assert [pair.name for pair in found.pairs] == ["id", "name"]
    assert found.notes == ["column 'made' is not in the target yet: it comes with the next change"]
    found = compared_columns(flow(", columns: {tenant: {value: a}}, unmapped: ignore"), RECORD, THERE)
    assert [pair.name for pair in found.pairs] == ["id", "name", "tenant"]
    assert found.own == {"tenant": "a"}  # the table is shared, and its other rows are another flow's


def test_a_history_and_a_table_without_a_key_are_not_compared() -> None:
    with pytest.raises(Incomparable, match="no copy") as caught:
        compared_columns(flow(", write: append"), RECORD, THERE)
    assert caught.value.meant
    keyless = SchemaRecord("shop", "public", "orders", "n", RECORD.columns[1:])
    with pytest.raises(Incomparable, match="it has no key") as caught:
        compared_columns(flow(""), keyless, THERE)
    assert not caught.value.meant


def test_a_column_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="--columns names 'nam'") as caught:
        compared_columns(flow(""), RECORD, THERE, ["nam"])
    assert "'name'" in caught.value.fix


# Verdicts


def table(job: str = "a", *, complete: bool = True, meant: bool = False, missing: int = 0) -> TableReport:
    return TableReport(
        job,
        "mirror",
        "public.a",
        "copy.a",
        0.01,
        complete,
        "",
        meant,
        source_rows=100,
        counts=Counts(missing),
    )


@pytest.mark.parametrize(
    ("tables", "verdict", "code"),
    [
        ([table()], "equal", 0),
        ([table(missing=1)], "equal", 0),
        ([table(missing=2), table(complete=False)], "drift", 1),
        ([table(), table(complete=False)], "incomplete", 3),
        ([table(), table(complete=False, meant=True)], "equal", 0),
        ([table(complete=False, meant=True)], "incomplete", 3),
        ([], "incomplete", 3),
    ],
)
def test_a_run_is_as_good_as_its_worst_table(tables: list[TableReport], verdict: str, code: int) -> None:
    report = Report("run", 0, tables)
    assert (report.verdict, report.exit_code) == (verdict, code)


def test_a_line_a_job() -> None:
    report = Report("run", 0, [table("a", missing=2), table("b"), table("a")])
    first, second = log_lines(report, 1_000_000)
    assert first.startswith("1970-01-01T00:00:01Z reconcile a drift drift=2.00% rows=200 missing=2 extra=0")
    assert second.startswith("1970-01-01T00:00:01Z reconcile b equal drift=0.00% rows=100")
