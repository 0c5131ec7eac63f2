"""What a repair takes of a table's faults, what refuses it, and keys as events have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumers.commands.reconcile import Wish, reconcile
from consumers.reconcile.canonical import canonical
from consumers.reconcile.fence import Judged
from consumers.reconcile.history import History, Repair
from consumers.reconcile.job import Job, jobs_of
from consumers.reconcile.proof import Judge
from consumers.reconcile.repair import Faulty, event_key, plan
from consumers.reconcile.report import Counts, RepairReport, TableReport
from streamer.changes.backfill import Request
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import parse
from streamer.errors import ConfigError

TEXT = """
name: acme
sources: {shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}}
targets: {copy: {kind: postgres, url: "postgresql://u@h/d"}}
flows: {mirror: {from: shop.public.*, to: copy.mirror}}
reconcile: {nightly: {flow: mirror, repair: {mode: auto, limit: 3, refuse_above: 5%}}}
"""
RECORD = SchemaRecord("shop", "public", "item", "d", (Column("id", "bigint", -1, "number", True),))
FAULTS = [("missing", ("7",)), ("different", ("8",)), ("extra", ("9",)), ("parked", ("10",))]


def job(**changes: Any) -> Job:
    (found,) = jobs_of(parse(TEXT, Path("tailrace.yaml"), environ={}), ["nightly"])
    return replace(found, repair=found.repair.model_copy(update=changes))


class Nobody:
    async def judge(self, suspects: Any) -> Judged:
        raise AssertionError("a plan reads nothing")


async def nobody() -> Judge:
    return Nobody()


def asked(run: str) -> Request:
    return Request(run, RECORD.source, schema=RECORD.schema, table=RECORD.table)


def faulty(faults: Any = FAULTS, *, rows: int = 100, complete: bool = True) -> Faulty:
    kinds = [kind for kind, _ in faults]
    counts = Counts(kinds.count("missing"), kinds.count("extra"), kinds.count("different"))
    report = TableReport("nightly", "mirror", "public.item", "copy.mirror.item", 0.0, complete)
    report.source_rows, report.counts = rows, counts
    return Faulty(report, RECORD, {"id": "number"}, faults, nobody, asked)


def repair_of(table: Faulty) -> RepairReport:
    assert table.report.repair is not None
    return table.report.repair


def test_extra_rows_need_the_option() -> None:
    without, with_ = faulty(), faulty()
    (planned,) = plan(job(), [without], samples=10)
    assert list(planned.keys.values()) == [(7,), (8,)]
    (planned,) = plan(job(delete_extra=True), [with_], samples=10)
    assert list(planned.keys.values()) == [(7,), (8,), (9,)]
    assert (repair_of(without).planned, repair_of(with_).planned) == (2, 3)


def test_the_limit_is_of_all_tables_of_the_job() -> None:
    tables = [faulty(), faulty()]
    assert plan(job(), tables, samples=10) == []
    for table in tables:
        assert "4 rows of nightly would be repaired, and the limit is 3" in repair_of(table).refused
        assert "`tailrace backfill shop public.item`" in repair_of(table).refused
        assert table.report.verdict == "drift"
    assert len(plan(job(limit=4), [faulty(), faulty()], samples=10)) == 2


def test_a_table_with_much_drift_is_refused_alone() -> None:
    much, some = faulty(rows=50), faulty()
    (planned,) = plan(job(), [much, some], samples=10)
    assert planned.faulty is some
    assert "the drift of 6.00% is above 5.00%" in repair_of(much).refused


def test_no_backfill_is_advised_against_rows_that_only_the_target_has() -> None:
    extra = [("extra", (str(n),)) for n in range(7)]
    much, many, mixed = faulty(extra), faulty(extra, rows=1000), faulty([*extra, FAULTS[0]])
    assert plan(job(delete_extra=True), [much, many, mixed], samples=10) == []
    refused = repair_of(much).refused
    assert "`tailrace reconcile nightly --repair --delete-extra --refuse-above 8%` deletes" in refused
    assert "tailrace backfill" not in refused + repair_of(many).refused
    assert "-> raise --limit" in repair_of(many).refused
    assert "`tailrace backfill shop public.item`; or raise --refuse-above" in repair_of(mixed).refused


def test_what_is_not_known_row_by_row_is_refused() -> None:
    part, none = faulty(complete=False), faulty([])
    none.report.reason = "the target has no such table"
    assert plan(job(), [part, none], samples=10) == []
    assert "not compared to its end" in repair_of(part).refused
    assert "`tailrace backfill shop public.item`" in repair_of(none).refused


def test_keys_that_no_event_has_are_left_and_some_are_named() -> None:
    table = faulty([*[("extra", (word,)) for word in ("seven", "eight", "nine")], ("missing", ("7",))])
    (planned,) = plan(job(delete_extra=True), [table], samples=2)
    assert list(planned.keys.values()) == [(7,)]
    assert repair_of(table).still == [["seven"], ["eight"]]


def test_a_key_with_a_nul_is_no_text_of_a_source_and_is_left() -> None:
    name = replace(RECORD, columns=(Column("id", "text", -1, "text", True),))
    table = replace(faulty([("extra", ("a\0",)), ("extra", ("b",))]), record=name, kinds={"id": "text"})
    (planned,) = plan(job(delete_extra=True), [table], samples=10)
    assert list(planned.keys.values()) == [("b",)]
    assert repair_of(table).still == [["a\0"]]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("number", -7),
        ("numeric", "1.500"),
        ("float", 0.1),
        ("float", "NaN"),
        ("float", "-Infinity"),
        ("float", -0.0),
        ("text", 'a"\\\n,'),
        ("bytea", "AP8="),
        ("bool", True),
        ("array:number", [1, None, 3]),
    ],
)
def test_a_key_comes_back_as_events_have_it(kind: str, value: Any) -> None:
    record = SchemaRecord(
        "shop",
        "public",
        "item",
        "d",
        (
            Column("a", kind, -1, kind, True),
            Column("x", "text", -1, "text", False),
            Column("b", "text", -1, "text", True),
        ),
    )
    text = canonical(kind, value)
    assert text is not None
    made = event_key(("t", text), {"b": "text", "a": kind}, record)  # compared in another order
    assert made is not None
    assert [canonical(kind, made[0]), made[1]] == [text, "t"]
    assert repr(made[0]) == repr(value)


@pytest.mark.parametrize(
    ("verified", "left", "reason", "verdict"),
    [
        (2, 0, "", "repaired"),
        (1, 1, "", "drift"),
        (0, 0, "it is paused", "incomplete"),
        (2, 0, "x", "incomplete"),
    ],
)
def test_the_verdict_is_that_of_the_second_comparison(
    verified: int, left: int, reason: str, verdict: str
) -> None:
    table = faulty(FAULTS[:2])
    table.report.repair = RepairReport("repair", 1, 0, 1, 2, verified, left, reason=reason)
    assert table.report.verdict == verdict


def test_options_of_a_repair_without_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(TEXT)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="--delete-extra, --limit is about a repair, and none") as caught:
        reconcile(path, Wish([], delete_extra=True, limit=5), as_json=True)
    assert "--dry-run" in caught.value.fix


def test_who_asked_first_stays_in_the_audit_trail(tmp_path: Path) -> None:
    config = parse(TEXT, tmp_path / "tailrace.yaml", environ={})
    history = History(config)
    try:
        history.open()
        runs = history.begin("r1", {}, [], 5, fresh=False)
        report = {"planned": 1}
        runs.repair_asked(Repair("b1", "mirror", "public.item", 10, "ann@host", "why", report))
        runs.repair_asked(Repair("b1", "mirror", "public.item", 20, "bob@host", "why", report))
        (asked,) = history.list(10)[0]["repairs"]
        assert (asked["asked_by"], asked["ended"], asked["run"]) == ("ann@host", None, "r1")
        runs.repair_ended("b1", {"planned": 1, "verified": 1}, 2_000_000)
        (ended,) = history.list(10)[0]["repairs"]
        assert (ended["ended"], ended["report"]["verified"]) == ("1970-01-01T00:00:02Z", 1)
    finally:
        history.close()
