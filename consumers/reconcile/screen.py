"""What people see of a run: its tables, what was found in each, its repairs; and the runs before it.

A table is printed where it has the room, and lines where it has not. What was found is report's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from consumers.reconcile.cells import cells_table, plain_text, share
from consumers.reconcile.report import Counts, RepairReport, Report, Sample, TableReport

SLOW_S = 10.0  # why the slower path was taken is of interest from then on
WIDEST = 10_000  # columns: a table is measured as if there were room for all
KINDS = ("missing", "extra", "different")
_HISTORY = ("began", "run", "names", "verdict", "tables", "rows", "drift", "seconds")


def show(report: Report, console: Console) -> None:
    table = Table(title=f"reconcile {report.run}: {report.verdict}")
    for heading in ("flow", "table", "verdict"):
        table.add_column(heading)
    for heading in ("rows", "missing", "extra", "different", "in flight", "drift"):
        table.add_column(heading, justify="right")
    for each in report.tables:
        counts = each.counts
        numbers = (each.source_rows, counts.missing, counts.extra, counts.different, counts.in_flight)
        table.add_row(_flow(each), each.source, _verdict(each), *map(str, numbers), share(each.drift))
    lines = [f"reconcile {report.run}: {report.verdict}", *map(_counted, report.tables)]
    _print(table, lines, console)
    if report.resumed:
        went_on = f"resumed: it went on with a run that was broken off, and that began {report.began}"
        _print_lines([f"{went_on}; --fresh compares all anew"], console)
    for each in report.tables:
        if each.groups is not None:
            console.print(cells_table(each.groups, f"{_flow(each)} {each.source}: groups and windows"))
        _print_lines(_lines(each), console)


def _counted(table: TableReport) -> str:
    """A table's row of the screen as a line."""
    counts = table.counts
    found = [f"{getattr(counts, name)} {name}" for name in KINDS if getattr(counts, name)]
    found += [f"{counts.in_flight} in flight"] if counts.in_flight else []
    words = ", ".join([f"{table.source_rows} rows", *found, f"drift {share(table.drift)}"])
    return f"{_flow(table)} {table.source}: {_verdict(table)}, {words}"


def _flow(table: TableReport) -> str:
    """One flow may be compared as several jobs in one run."""
    return table.flow if table.job == table.flow else f"{table.flow} ({table.job})"


def _print(table: Table, lines: Sequence[str], console: Console) -> None:
    """As a table where there is room for it; else as lines, since folded cells read like noise."""
    if console.measure(table, options=console.options.update(width=WIDEST)).maximum <= console.width:
        console.print(table)
    else:
        _print_lines(lines, console)


def _print_lines(lines: Iterable[str], console: Console) -> None:
    """Not folded: commands in them are copied."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(table: TableReport) -> str:
    return "not compared" if table.meant and not table.complete else table.verdict


def _lines(table: TableReport) -> list[str]:
    lines = []
    if table.reason:
        lines.append(table.reason)
    counts = table.counts
    if counts.parked:
        lines.append(
            f"{_wait(counts.parked)} behind a refused change: `tailrace dead-letters list"
            f" {table.target.split('.', 1)[0]}`"
        )
    if counts.held:
        lines.append(f"{_wait(counts.held)} for `tailrace approve {table.flow}`, or `refuse`")
    if counts.unusable:
        rows = "row is of a value" if counts.unusable == 1 else "rows are of values"
        lines.append(
            f"{counts.unusable} {rows} that the entity cannot use: not compared, `tailrace status` says where"
        )
    for kind in KINDS:
        samples = [sample for sample in table.samples if sample.kind == kind]
        if samples:
            count = getattr(counts, kind)
            more = f" and {count - len(samples)} more" if count > len(samples) else ""
            lines.append(f"{kind}: {'; '.join(map(_text, samples))}{more}")
    if table.repair is not None:
        lines += _repair_lines(table.repair, counts)
    if table.why_not_fast is not None and table.counts.drift == 0 and table.seconds > SLOW_S:
        lines.append(f"by canonical text, as {table.why_not_fast}")
    if table.paused_s:
        lines.append(f"waited {table.paused_s:.0f} s for the flow, which was above the lag limit")
    lines += table.notes
    return [f"{_flow(table)} {table.source}: {line}" for line in lines]


def _repair_lines(repair: RepairReport, counts: Counts) -> list[str]:
    words = ", ".join(f"{getattr(repair, kind)} {kind}" for kind in KINDS if getattr(repair, kind))
    lines = []
    if repair.refused:
        lines.append(f"not repaired: {repair.refused}")
    elif repair.mode == "plan":
        lines.append(f"a repair would publish: {words or 'nothing'}")
    elif repair.backfill:
        lines.append(
            f"repair of {words}: published {repair.applied}, verified {repair.verified}"
            f"{_unproved(repair.unproved)}; backfill {repair.backfill}"
        )
    if repair.reason:
        lines.append(f"the repair is not proved: {repair.reason}")
    if repair.still:
        keys = "; ".join(f"({', '.join(map(plain_text, key))})" for key in repair.still)
        lines.append(f"still not equal: {keys}")
    if counts.extra > repair.extra and not repair.refused:
        lines.append(f"only in the target: {counts.extra}; --delete-extra deletes such rows")
    return lines


def _unproved(count: int) -> str:
    return f", not proved {count}" if count else ""


def _wait(count: int) -> str:
    return f"{count} row waits" if count == 1 else f"{count} rows wait"


def _text(sample: Sample) -> str:
    key = ", ".join(map(plain_text, sample.key))
    if sample.source is None and sample.target is None:
        return f"({key})" + (f" in {', '.join(sample.columns)}" if sample.columns else "")
    return f"({key}) {_values(sample.source)} -> {_values(sample.target)}"


def _values(values: dict[str, str | None] | None) -> str:
    if values is None:
        return "no row"
    return ", ".join(f"{name}={'NULL' if v is None else repr(v)}" for name, v in values.items())


def _repair_lines_of(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The audit trail of these runs, a line a repair."""
    lines = []
    for each in (repair for entry in entries for repair in entry["repairs"]):
        report = each["report"]
        unproved = _unproved(report.get("unproved", 0))
        figures = (
            f"published {report['applied']}, verified {report['verified']}, left {report['left']}{unproved}"
        )
        lines.append(
            f"{each['asked']} {each['asked_by']} ({each['why']}) repaired {each['flow']}"
            f" {each['source_table']}: planned {report['planned']},"
            f" {figures if each['ended'] else 'not ended'}; run {each['run']}"
        )
    return lines


def show_history(entries: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table()
    for heading in _HISTORY:
        table.add_column(heading)
    rows = [_history_row(entry) for entry in entries]
    for row in rows:
        table.add_row(*row)
    lines = [
        f"{began} {run} {verdict}: {names}"
        + (f", {tables} tables, {count} rows, drift {drift}, {seconds} s" if drift else "")
        for began, run, names, verdict, tables, count, drift, seconds in rows
    ]
    _print(table, lines, console)
    _print_lines(_repair_lines_of(entries), console)


def _history_row(entry: dict[str, Any]) -> list[str]:
    report = entry["report"]
    tables = report["tables"] if report else []
    return [
        entry["began"],
        entry["run"],
        " ".join(entry["names"]) or "all flows",
        report["verdict"] if report else "not ended",
        str(len(tables)),
        str(sum(each["source_rows"] for each in tables)),
        share(max((each["drift"] for each in tables), default=0.0)) if report else "",
        f"{report['seconds']:.1f}" if report else "",
    ]
