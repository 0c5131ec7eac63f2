"""What a run has found: the report's shape, its verdict and exit code, its JSON, and lines of the health log.

The JSON is described by docs/reconcile.schema.json. Values of rows are in it only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from consumers.reconcile.cells import LISTED, Cells, share
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, EXIT_REPAIRED, EXIT_RUNTIME

VERSION = 1
SAMPLES = 10  # of each kind of fault and table, unless asked: enough to see what they have in common
FENCES = 3  # the last ones of a table

EQUAL, DRIFT, INCOMPLETE, ERROR, REPAIRED = "equal", "drift", "incomplete", "error", "repaired"
STREAM = "stream"  # what is on its way was waited for: capture's position and the target's checkpoints
_EXITS = {
    EQUAL: EXIT_OK,
    DRIFT: EXIT_FINDING,
    INCOMPLETE: EXIT_INCOMPLETE,
    ERROR: EXIT_RUNTIME,
    REPAIRED: EXIT_REPAIRED,
}
_WORST = (ERROR, DRIFT, INCOMPLETE, REPAIRED, EQUAL)


def worst(verdicts: Iterable[str]) -> str:
    found = set(verdicts)
    return next(verdict for verdict in _WORST if verdict in found)


@dataclass(slots=True)
class Sample:
    """`columns`: those that differ; with values only where they were asked for, as canonical texts."""

    kind: str
    key: list[str]
    columns: list[str] = field(default_factory=list)
    source: dict[str, str | None] | None = None
    target: dict[str, str | None] | None = None


@dataclass(slots=True)
class FenceReport:
    """LSNs as PostgreSQL writes them; `offsets`: by partition, what the target's checkpoints had reached."""

    lsn: str
    position: str
    offsets: dict[str, int]
    waited_s: float

    @classmethod
    def of(cls, lsn: str, position: str, offsets: dict[int, int], waited_s: float) -> FenceReport:
        by_partition = {str(partition): offset for partition, offset in sorted(offsets.items())}
        return cls(lsn, position, by_partition, round(waited_s, 3))


@dataclass(slots=True)
class Counts:
    """`in_flight`, `parked`, `held` and `unusable` are no drift; `settled` were equal once the fence was
    passed."""

    missing: int = 0
    extra: int = 0
    different: int = 0
    in_flight: int = 0
    parked: int = 0
    held: int = 0
    unusable: int = 0
    settled: int = 0

    @property
    def drift(self) -> int:
        return self.missing + self.extra + self.different


@dataclass(slots=True)
class RepairReport:
    """`planned`: rows that are, or would be, repaired, of which so many of each kind. `applied`: rows and
    deletes that the backfill has published; `verified`: planned rows that the second comparison found
    equal. `left`: rows that are drift all the same, `still` the keys of some that were planned;
    `unproved`: planned rows of which the second comparison could not say yet.
    `refused`: why nothing was asked; `reason`: why it is not known how it came out.
    """

    mode: str  # plan | repair
    missing: int = 0
    extra: int = 0
    different: int = 0
    applied: int = 0
    verified: int = 0
    left: int = 0
    unproved: int = 0
    still: list[list[str]] = field(default_factory=list)
    backfill: str = ""
    state: str = ""  # of the backfill
    refused: str = ""
    reason: str = ""

    @property
    def planned(self) -> int:
        return self.missing + self.extra + self.different

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "planned": self.planned}


@dataclass(slots=True)
class TableReport:
    """`reason`: why it is not complete, or was passed over (`meant`: the flow says so itself). `fence`: None
    where no stream is between the two, so that nothing can be waited for."""

    job: str
    flow: str
    source: str
    target: str
    threshold: float
    complete: bool = False
    reason: str = ""
    meant: bool = False
    failed: bool = False
    fence: str | None = STREAM
    path: str = ""
    why_not_fast: str | None = None
    cut_by: str = ""  # ranges | buckets
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    source_rows: int = 0
    target_rows: int = 0
    counts: Counts = field(default_factory=Counts)
    fences: list[FenceReport] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    repair: RepairReport | None = None
    groups: Cells | None = None
    resumed: bool = False
    paused_s: float = 0.0  # by the lag limit; not in `seconds`
    seconds: float = 0.0

    @property
    def drift(self) -> float:
        """A share of the rows, as the comparison has found it."""
        return min(1.0, self.counts.drift / self._rows)

    @property
    def _rows(self) -> int:
        return max(1, self.source_rows, self.target_rows)

    @property
    def verdict(self) -> str:
        if self.failed:
            return ERROR
        repair = self.repair
        left = self.counts.drift if repair is None else repair.left
        if left / self._rows > self.threshold:
            return DRIFT
        if not (self.complete or self.meant) or (repair is not None and repair.reason):
            return INCOMPLETE
        return REPAIRED if repair is not None and repair.verified else EQUAL

    def plain(self, cells: int) -> dict[str, Any]:
        """`cells`: how many groups and windows of a table are listed."""
        raw: dict[str, Any] = asdict(replace(self, groups=None))
        counts, seconds = raw.pop("counts"), max(self.seconds, 1e-6)
        rows = max(self.source_rows, self.target_rows)
        figures = {
            "drift": self.drift,
            "verdict": self.verdict,
            "paused_s": round(self.paused_s, 3),
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(rows / seconds),
            "repair": self.repair.plain() if self.repair else None,
            "groups": self.groups.plain(cells) if self.groups else None,
        }
        return {**raw, **counts, **figures}


@dataclass(slots=True)
class Report:
    run: str
    began_us: int
    tables: list[TableReport] = field(default_factory=list)
    seconds: float = 0.0
    resumed: bool = False  # it went on with a run that was broken off, which began at `began_us`

    @property
    def verdict(self) -> str:
        """The worst of the tables'; a run that has compared nothing is incomplete."""
        if all(table.meant for table in self.tables):
            return INCOMPLETE
        return worst(table.verdict for table in self.tables)

    @property
    def exit_code(self) -> int:
        return _EXITS[self.verdict]

    @property
    def complete(self) -> bool:
        return all(table.complete or table.meant for table in self.tables)

    @property
    def began(self) -> str:
        return _time(self.began_us)

    def plain(self, cells: int = LISTED) -> dict[str, Any]:
        """`cells`: how many groups and windows of a table are listed."""
        return {
            "version": VERSION,
            "run": self.run,
            "began": self.began,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict,
            "complete": self.complete,
            "exit_code": self.exit_code,
            "tables": [table.plain(cells) for table in self.tables],
        }


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def log_lines(report: Report, ended_us: int) -> list[str]:
    """One a job."""
    lines = []
    for job in dict.fromkeys(table.job for table in report.tables):
        tables = [table for table in report.tables if table.job == job]
        counts = {
            name: sum(getattr(table.counts, name) for table in tables)
            for name in ("missing", "extra", "different", "in_flight", "parked", "held", "unusable")
        }
        verdict = worst(table.verdict for table in tables)
        rows = sum(table.source_rows for table in tables)
        drift = max(table.drift for table in tables)
        counts["repaired"] = sum(table.repair.verified for table in tables if table.repair)
        words = " ".join(f"{name}={count}" for name, count in counts.items())
        seconds = sum(table.seconds for table in tables)
        lines.append(
            f"{_time(ended_us)} reconcile {job} {verdict} drift={share(drift)} rows={rows} {words}"
            f" tables={len(tables)} seconds={seconds:.1f}{_cells_word(tables)} run={report.run}"
        )
    return lines


def _cells_word(tables: Sequence[TableReport]) -> str:
    """Of groups and windows, where the job has some: the drift of the worst."""
    listed = [cell.drift for table in tables if table.groups is not None for cell in table.groups.listed]
    return f" worst_group={share(max(listed))}" if listed else ""
