"""The screens of `status`, `lag` and `run`: plain values of `consumers.views` as rich tables.

Draws only. The worst thing comes first, in one sentence; figures that are unknown are a dash. A column of
figures has one unit, which its header names: lags are seconds, latencies milliseconds, whatever their size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from consumers.views import UNKNOWN, Finding, FlowState, Status, duration, size
from consumers.views.backfills import sentence as backfill_text

FINDINGS_LIMIT = 10  # below the verdict; more is a list to read in --json
REASON_LINES = 4
GAP = 2  # between columns; rich does not count the last one
UNBOUNDED = 10_000  # columns: what a table would take if it could
PARTITIONS_LIMIT = 10  # of those behind, the worst: all is one screen, and more is a list to read in --json
FLOW_CHARS = 24  # a longer name is cut in the middle
TOPIC_CHARS = 36
BACKFILLS_LIMIT = 8  # lines
WHOLE_FROM = 99.95  # what would be rounded to 100.0
COUNTED = "captured and applied: rows counted by each process since its own start"

_PROOF_COLOURS = {"equal": "green", "repaired": "green", "drift": "red"}
_BACKFILL_COLOURS = {"running": "cyan", "waiting": "cyan", "paused": "yellow"}
_COLOURS = {
    "OK": "green",
    "IDLE": "green",
    "SLOW": "yellow",
    "PAUSED": "yellow",
    "HELD": "magenta",
    "STALLED": "red",
    "UNKNOWN": "red",
    "REWOUND": "red",
    "ERROR": "bold red",
    "starting": "cyan",
    "snapshot": "cyan",
    "streaming": "green",
    "running": "green",
    "idle": "green",
    "standby": "blue",
    "waiting": "yellow",
    "held": "magenta",
    "stopping": "yellow",
    "stopped": "dim",
    "silent": "red",
    "unknown": "red",
    "error": "bold red",
    "backoff": "red",
}


def status_screen(status: Status) -> RenderableType:
    blocks: list[RenderableType] = [_verdict(status)]
    if status.flows:
        blocks.append(_flows(status))
    if status.sources:
        blocks.append(Group(_sources(status), *_copies(status), *_backfills(status)))
    if status.processors:
        blocks.append(_processors(status))
    if status.parts:
        blocks.append(_parts(status))
    return Group(*(Padding(block, (0, 0, 1, 0)) for block in blocks))


def run_screen(status: Status) -> RenderableType:
    """As the status screen, with where to look and how to stop below it."""
    hint = Text("Ctrl-C stops it all; the log is in .tailrace/run.log", style="dim")
    return Group(status_screen(status), hint)


def lag_screen(status: Status, lag: Mapping[str, Any]) -> RenderableType:
    blocks: list[RenderableType] = [_verdict(status, findings=False), _stages(lag), *_partitions(lag)]
    return Group(*(Padding(block, (0, 0, 1, 0)) for block in blocks))


def _verdict(status: Status, *, findings: bool = True) -> RenderableType:
    worst = status.findings[0] if status.findings else None
    if worst is None or status.is_well:
        well = _hanging("✓ ", f"{status.name}: {status.verdict}", "bold green")
        return Group(well, *(_findings(status.findings) if findings else []))
    style = "bold red" if worst.counts else "bold yellow"
    blocks: list[RenderableType] = [_hanging("✗ " if worst.counts else "! ", status.verdict, style)]
    rest = worst.text.split("\n")[1:]
    blocks += [_hanging("  ", line.strip(), "cyan") for line in rest[:REASON_LINES]]
    return Group(*blocks, *(_findings(status.findings[1:]) if findings else []))


def _hanging(mark: str, text: str, style: str) -> RenderableType:
    """A sentence whose further lines stand below its first word, not below its mark."""
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(text, style=style))
    return grid


def _findings(findings: Sequence[Finding]) -> list[RenderableType]:
    """Those below the verdict."""
    lines: list[RenderableType] = []
    for finding in findings[:FINDINGS_LIMIT]:
        first, *more = finding.text.split("\n")
        style = "red" if finding.counts else "yellow"
        lines.append(_hanging("  ✗ " if finding.counts else "  ! ", first, style))
        lines += [_hanging("    ", line.strip(), "cyan") for line in more[:REASON_LINES]]
    if len(findings) > FINDINGS_LIMIT:
        lines.append(Text(f"  and {len(findings) - FINDINGS_LIMIT} more: see --json", style="dim"))
    return lines


def short_names(names: Iterable[str], limit: int) -> dict[str, str]:
    """Each name in `limit` characters, cut in the middle, or in as many more as keep them apart."""
    found: dict[str, str] = {}
    left, chars = set(names), limit
    while left:
        cut = {name: _cut(name, chars) for name in left}
        taken = Counter([*cut.values(), *found.values()])
        clear = {name: short for name, short in cut.items() if taken[short] == 1}
        found |= clear
        left -= clear.keys()
        chars += 1
    return found


def _cut(name: str, chars: int) -> str:
    if len(name) <= chars:
        return name
    head = (chars - 1) // 2
    return f"{name[:head]}…{name[head + 1 - chars :]}"


class Fitting:
    """The widest of some tables that has room, else the last: no column is cut to where it says nothing."""

    def __init__(self, *tables: Table) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=UNBOUNDED)
        for table in self._tables:
            if Measurement.get(console, unbounded, table).maximum + GAP <= options.max_width:
                break
        yield table


def headed(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=column in right, overflow="fold")
    return table


def without(table: Table, *headers: str) -> Table:
    """The same table without these columns."""
    found = headed()
    kept = [column for column in table.columns if column.header not in headers]
    found.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    found.rows = table.rows
    found.caption, found.caption_justify = table.caption, table.caption_justify
    return found


def _flows(status: Status) -> RenderableType:
    table = headed(
        "FLOW",
        "STATE",
        "CAPTURED",
        "APPLIED",
        "LAG s",
        "RECORDS",
        "RATE",
        "P50 ms",
        "P99 ms",
        "PROOF",
        "TO",
        right=("CAPTURED", "APPLIED", "LAG s", "RECORDS", "RATE", "P50 ms", "P99 ms"),
    )
    table.caption = COUNTED
    table.caption_justify = "left"
    names = short_names((flow["name"] for flow in status.flows), FLOW_CHARS)
    for flow in sorted(status.flows, key=lambda f: -list(FlowState).index(f["state"])):
        latency = flow["latency_ms"] or {}
        table.add_row(
            escape(names[flow["name"]]),
            _state(flow["state"]),
            _count(flow["captured"]),
            _count(flow["applied"]),
            figure(flow["lag_s"]),
            _count(flow["lag_records"]),
            rate(flow["rate"]),
            figure(latency.get("p50")),
            figure(latency.get("p99")),
            _proof(flow["proof"], status.at_us),
            Text(flow["to"], style="dim"),
        )
    if all(flow["proof"] is None for flow in status.flows):
        table = without(table, "PROOF")
    narrow = without(table, "TO", "P50 ms", "RATE")
    return Fitting(table, without(table, "TO"), narrow, without(narrow, "PROOF"))


def _proof(proof: Mapping[str, Any] | None, at_us: int) -> Text:
    """The verdict of the flow's last comparison, and how long ago that was."""
    if proof is None:
        return Text(UNKNOWN)
    ago = duration((at_us - proof["ended_us"]) / 1e6)
    return Text(f"{proof['verdict']} {ago} ago", style=_PROOF_COLOURS.get(proof["verdict"], "yellow"))


def _sources(status: Status) -> RenderableType:
    table = headed(
        "SOURCE",
        "STATE",
        "EPOCH",
        "POSITION",
        "PUBLISHED",
        "RATE",
        "LAG s",
        "BEHIND",
        "SLOT KEEPS",
        right=("EPOCH", "PUBLISHED", "RATE", "LAG s", "BEHIND"),
    )
    for source in status.sources:
        state = _state(source["state"])
        if source["standbys"]:
            state.append(f" +{source['standbys']} standby", style="blue")
        table.add_row(
            escape(source["name"]),
            state,
            _count(source["epoch"]),
            source["lsn"] or UNKNOWN,
            _count(source["published"]),
            rate(source["rate"]),
            figure(source["lag_s"]),
            size(source["lag_bytes"]),
            _kept(source["slot_wal_bytes"], source["wal_warn_bytes"]),
        )
    if all(source["wal_warn_bytes"] is None for source in status.sources):
        table = without(table, "SLOT KEEPS")
    return Fitting(table, without(table, "EPOCH"), without(table, "EPOCH", "PUBLISHED", "RATE"))


def _processors(status: Status) -> RenderableType:
    figures = ("EPOCH", "DONE", "DERIVED", "RATE", "LAG s", "RECORDS", "PARKED", "STATE KEEPS")
    table = headed("PROCESSOR", "STATE", *figures, "OUT", right=figures)
    for each in status.processors:
        state = _state(each["state"])
        if each["workers"] > 1:
            state.append(f" {each['workers']} workers", style="blue")
        table.add_row(
            escape(each["name"]),
            state,
            _count(each["epoch"]),
            _count(each["done"]),
            _count(each["derived"]),
            rate(each["rate"]),
            figure(each["lag_s"]),
            _count(each["lag_records"]),
            _count(each["parked"]),
            size(each["state_bytes"]),
            Text(each["out"], style="dim"),
        )
    narrow = without(table, "OUT", "EPOCH", "STATE KEEPS")
    return Fitting(table, without(table, "OUT", "EPOCH"), narrow, without(narrow, "DONE", "DERIVED"))


def _kept(wal: int | None, warn: int | None) -> Text:
    """`warn` None: the source has no slot."""
    if warn is None:
        return Text(UNKNOWN)
    return Text(f"{size(wal)} of {size(warn)}", style="red" if wal is not None and wal >= warn else "")


def _copies(status: Status) -> list[Text]:
    """A line for each source that is being copied for the first time, or read in full again."""
    lines = []
    for source in status.sources:
        snapshot = source["snapshot"]
        if snapshot:
            done = f"{snapshot['tables_done']} of {snapshot['tables']} tables"
            now = f", now {snapshot['table']} ({snapshot['rows']:,} rows)" if snapshot["table"] else ""
            lines.append(Text(f"{source['name']}: first copy, {done}{now}", style="cyan"))
        scan = source["scan"]
        if scan:
            gone = f", {scan['gone']:,} rows gone" if scan["gone"] else ""
            text = f"{source['name']}: {scan['why']}: {scan['keys']:,} keys read{gone}"
            lines.append(Text(text, style="cyan"))
    return lines


def _backfills(status: Status) -> list[Text]:
    """A line for each that is not over; more is a list."""
    found = [
        Text(f"{source['name']}: backfill of {each['table']} {backfill_text(each)}", style=style)
        for source in status.sources
        for each in source["backfills"]
        if (style := _BACKFILL_COLOURS.get(each["state"])) is not None
    ]
    if len(found) > BACKFILLS_LIMIT:
        more = Text(f"and {len(found) - BACKFILLS_LIMIT} more: see `tailrace backfills`", style="dim")
        found = [*found[:BACKFILLS_LIMIT], more]
    return found


def _parts(status: Status) -> Table:
    table = headed("PART", "STATE", "FOR", "PROCESS", "RESTARTS", "REASON", right=("RESTARTS",))
    for part in status.parts:
        since_s = (status.at_us - part["since_us"]) / 1e6 if part["since_us"] else None
        first = str(part["reason"]).split("\n", 1)[0]
        table.add_row(
            escape(part["part"]),
            _state(part["state"]),
            duration(since_s if part["state"] != "silent" else part["age_s"]),
            escape(part["instance"]),
            _count(part["restarts"]),
            Text(first, no_wrap=True, overflow="ellipsis"),
        )
    return table


STAGES = ("TOTAL", "CAPTURE", "KAFKA", "APPLY")


def _stages(lag: Mapping[str, Any]) -> RenderableType:
    figures = ("RECORDS", "LAG s", *(f"{stage} ms" for stage in STAGES))
    table = headed("FLOW", "STATE", *figures, right=figures)
    table.caption = "ms from commit to commit, p50 / p99 of the last minute, and its parts"
    table.caption_justify = "left"
    names = short_names((flow["name"] for flow in lag["flows"]), FLOW_CHARS)
    for flow in lag["flows"]:
        parts = [flow[stage.lower()] for stage in STAGES]
        times = [f"{figure(part['p50_ms'])} / {figure(part['p99_ms'])}" for part in parts]
        name, records = escape(names[flow["name"]]), _count(flow["lag_records"])
        table.add_row(name, _state(flow["state"]), records, figure(flow["lag_s"]), *times)
    return Fitting(table, without(table, "RECORDS", "LAG s"))


def _partitions(lag: Mapping[str, Any]) -> list[RenderableType]:
    """The worst of those that are behind, and how many there are besides."""
    places = [(flow["name"], place) for flow in lag["flows"] for place in flow["partitions"]]
    behind = [(flow, place) for flow, place in places if place.get("lag_records") != 0]
    behind.sort(key=lambda row: (-(row[1].get("lag_s") or 0), -(row[1].get("lag_records") or 0)))
    worst = behind[:PARTITIONS_LIMIT]
    blocks: list[RenderableType] = [_worst(worst)] if worst else []
    more, at_end = len(behind) - len(worst), len(places) - len(behind)
    words = [f"{more} more behind"] if more else []
    words += [f"{at_end} {'partition' if at_end == 1 else 'partitions'} at their end"] if at_end else []
    if words:
        joined = " and ".join(words)
        blocks.append(Text(f"{'... and ' if worst else ''}{joined}; --json has all", style="dim"))
    return [Group(*blocks)] if blocks else []


def _worst(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> RenderableType:
    figures = ("PARTITION", "OFFSET", "END", "RECORDS", "LAG s")
    table = headed("FLOW", "TOPIC", *figures, right=figures)
    flows = short_names((flow for flow, _ in rows), FLOW_CHARS)
    topics = short_names((place["topic"] for _, place in rows), TOPIC_CHARS)
    for flow, place in rows:
        table.add_row(
            escape(flows[flow]),
            escape(topics[place["topic"]]),
            str(place["partition"]),
            _count(place.get("offset")),
            _count(place.get("end")),
            _count(place.get("lag_records")),
            figure(place.get("lag_s")),
        )
    return Fitting(table, without(table, "OFFSET", "END"))


def _state(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, ""))


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}/s"


def figure(value: float | None) -> str:
    """Of a column with one unit: below 100 with a digit behind the point, else whole, in thousands."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if value < WHOLE_FROM else f"{value:,.0f}"


def show(console: Console, screen: RenderableType) -> None:
    console.print(screen, highlight=False)
