"""What people see of a reconcile on a terminal of any width."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from consumers.reconcile.cells import Cell, Cells
from consumers.reconcile.report import Counts, Report, Sample, TableReport
from consumers.reconcile.screen import show, show_history

RUN = "20261122T125958-1f3a"
FIX = "publish the table again: `tailrace backfill warehouse_of_the_west public.customers_by_region`"


def report() -> Report:
    table = TableReport("customers", "customers", "public.customers_by_region", "copy.mirror.customers", 0.0)
    table.complete, table.source_rows, table.target_rows = True, 12_000_000, 11_999_999
    table.counts = Counts(missing=1, different=2)
    table.samples = [Sample("missing", ["7"])]
    table.reason = f"a reason\n  -> {FIX}"
    return Report(RUN, 0, [table])


def shown(width: int) -> list[str]:
    out = StringIO()
    show(report(), Console(file=out, width=width))
    return out.getvalue().splitlines()


def test_a_table_where_it_has_the_room_and_lines_where_it_has_not() -> None:
    wide, narrow = shown(120), shown(80)
    assert any("public.customers_by_region │ drift   │ 12000000 │       1 │" in line for line in wide)
    assert narrow[:2] == [
        f"reconcile {RUN}: drift",
        "customers public.customers_by_region: drift, 12000000 rows, 1 missing, 2 different, drift 0.000025%",
    ]
    for lines in (wide, narrow):
        assert f"  -> {FIX}" in lines  # in one piece, as it is copied
        assert "customers public.customers_by_region: missing: (7)" in lines


def test_what_nobody_would_see_is_quoted_and_a_run_that_went_on_says_so() -> None:
    went_on = report()
    went_on.resumed = True
    keys = ["7 ", ""], [" x", "plain text"], ["a\0", "NULL"]
    went_on.tables[0].samples = [Sample("missing", list(key)) for key in keys]
    went_on.tables[0].groups = Cells(("a", "b"), "", 0, 1, 0, [Cell((" x", "NULL"), None, 1, 0)])
    out = StringIO()
    show(went_on, Console(file=out, width=120))
    said = out.getvalue()
    assert "missing: ('7 ', ''); (' x', plain text); ('a\\x00', 'NULL')" in said
    assert "│ ' x' │ 'NULL' │" in said
    assert "resumed: it went on with a run that was broken off, and that began 1970-01-01T00:00:00Z" in said
    assert went_on.plain()["resumed"]


def test_several_jobs_of_a_flow_are_told_apart() -> None:
    asked = report()
    asked.tables.append(replace(asked.tables[0], job="nightly", samples=[], reason=""))
    for width, between in ((80, " "), (140, " │ ")):
        out = StringIO()
        show(asked, Console(file=out, width=width))
        lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
        one, other = [line for line in lines if "12000000" in line]
        assert f"customers{between}public.customers_by_region" in one
        assert f"customers (nightly){between}public.customers_by_region" in other


def test_the_history_has_a_line_a_run_where_there_is_no_room() -> None:
    ended = {**report().plain(), "seconds": 1.4}
    runs = [("2026-11-22T12:59:58Z", RUN, ["customers"], ended), ("2026-11-22T12:58:00Z", "other", [], None)]
    entries = [dict(zip(("began", "run", "names", "report"), run, strict=True), repairs=[]) for run in runs]
    found = {}
    for width in (80, 140):
        out = StringIO()
        show_history(entries, Console(file=out, width=width))
        found[width] = out.getvalue().splitlines()
    assert found[80] == [
        f"2026-11-22T12:59:58Z {RUN} drift: customers, 1 tables, 12000000 rows, drift 0.000025%, 1.4 s",
        "2026-11-22T12:58:00Z other not ended: all flows",
    ]
    assert any(f"│ 2026-11-22T12:59:58Z │ {RUN} │ customers │ drift" in line for line in found[140])


def test_only_rows_that_are_parked_are_looked_for_among_the_dead_letters() -> None:
    def said(**counts: int) -> str:
        found = report()
        found.tables[0].counts = Counts(**counts)
        out = StringIO()
        show(found, Console(file=out, width=300))
        return out.getvalue()

    assert "1 row waits behind a refused change: `tailrace dead-letters list copy`" in said(parked=1)
    unusable = said(unusable=2)
    assert "2 rows are of values that the entity cannot use: not compared, `tailrace status` says" in unusable
    assert "dead-letters" not in unusable
