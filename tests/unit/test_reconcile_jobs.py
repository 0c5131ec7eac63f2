"""Which flows a run compares, and what it says of names and jobs that it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.commands.reconcile import Wish, reconcile
from consumers.reconcile.forms import Held
from consumers.reconcile.job import check_alone, jobs_of
from consumers.reconcile.mapping import Incomparable, Target, compared_columns
from consumers.reconcile.report import Counts, Report, TableReport, log_lines
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Config, Flow, parse, unbuilt_sections
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
    assert [job.refused for job in jobs] == [
        "",
        "",
        "comparing a redis target is not built yet",
        "comparing a redis source is not built yet",
    ]


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


@pytest.mark.parametrize(
    ("job", "path"),
    [
        (", group_by: day", "reconcile.nightly.group_by"),
        (", windows: {column: day, sizes: [7d]}", "reconcile.nightly.windows"),
    ],
)
def test_what_is_not_built_stops_its_job_only(job: str, path: str) -> None:
    asked = config(job=job)
    with pytest.raises(ConfigError, match=path):
        jobs_of(asked, ["nightly"])
    by_name = {found.name: found.refused for found in jobs_of(asked, [])}
    assert by_name["nightly"].startswith(path)
    assert by_name["mirror"] == ""
    assert [unbuilt.path for unbuilt in unbuilt_sections(asked)] == [path]
    assert unbuilt_sections(config()) == []


def test_of_the_control_database_only_the_url_is_built() -> None:
    text = TEXT.format(flow="", job="")
    found = [
        [u.path for u in unbuilt_sections(parse(text + control, Path("tailrace.yaml"), environ={}))]
        for control in ("control: {url: 'sqlite:///runs.db'}\n", "control: {http: '127.0.0.1:1'}\n")
    ]
    assert found == [[], ["control"]]


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
