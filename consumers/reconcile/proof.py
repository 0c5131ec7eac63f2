"""One table's proof: cut, compared piece by piece, its suspects judged at the fence, its progress saved.

A piece is the unit of the rate limit and of resuming: what is behind it need not be read again. Suspects
are kept until there are enough of them for a fence to be worth its wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from consumers.reconcile.cells import Cells, cells_of
from consumers.reconcile.compare import SUSPECTS_LIMIT, compare
from consumers.reconcile.fence import HELD, PARKED, UNUSABLE, Fault, Judged
from consumers.reconcile.groups import GROUPS_LIMIT, Drift, Grouping, Places
from consumers.reconcile.report import FENCES, SAMPLES, Counts, FenceReport, Sample, TableReport
from consumers.reconcile.sides.base import Key, Part, Plan, Row, both
from consumers.reconcile.sides.postgres import PostgresSide
from consumers.reconcile.tables import Sides

RANGE_ROWS = 5_000  # a scattered fault costs the reading of so many once more
RANGES_LIMIT = 40_000  # of a table: a billion rows in ranges of 25,000; their bounds are kept while it runs
PIECE_RANGES = 2_048  # ten million rows of one scan, on a server some seconds
EACH_RANGES = 64  # of a piece where ranges are read one by one
BUCKET_ROWS = 1_000  # one scan finds the unequal ones, another one lists their rows
BUCKETS_LIMIT = 32_768
JUDGE_AT = 5_000  # suspects: their rows are held in memory three times

Save = Callable[["Progress"], Awaitable[None]]
Wait = Callable[[], Awaitable[float]]  # before a piece, as long as the source is not to be read; seconds


class Judge(Protocol):
    async def judge(self, suspects: Sequence[Key]) -> Judged: ...


@dataclass(slots=True)
class Progress:
    """What is known of a table so far, as JSON keeps it. `parts`: of the plan, how many are done.

    `strangers`: of the suspects, rows of the target alone in a table that may keep such, which are drift.
    `faults`: (kind, key) of each, for a repair; `spent_s`: also by processes before this one, without
    `paused_s`, which the lag limit took. `moment_us`: where windows end; `drift`: faults by group and window.
    """

    parts: int = 0
    source_rows: int = 0
    target_rows: int = 0
    suspects: list[Key] = field(default_factory=list)
    strangers: list[Key] = field(default_factory=list)
    faults: list[tuple[str, Key]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    fences: list[FenceReport] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    cut: bool = False
    spent_s: float = 0.0
    paused_s: float = 0.0
    moment_us: int = 0
    drift: Drift = field(default_factory=Drift)

    def dump(self) -> dict[str, Any]:
        raw: dict[str, Any] = asdict(replace(self, drift=Drift()))
        return raw | {"drift": self.drift.dump()}

    @classmethod
    def load(cls, raw: dict[str, Any]) -> Progress:
        raw = dict(raw)
        suspects = [tuple(key) for key in raw.pop("suspects")]
        strangers = [tuple(key) for key in raw.pop("strangers", ())]
        faults = [(kind, tuple(key)) for kind, key in raw.pop("faults")]
        samples = [Sample(**sample) for sample in raw.pop("samples")]
        fences = [FenceReport(**fence) for fence in raw.pop("fences")]
        counts, drift = Counts(**raw.pop("counts")), Drift.load(raw.pop("drift"))
        return cls(
            **raw,
            suspects=suspects,
            strangers=strangers,
            faults=faults,
            samples=samples,
            fences=fences,
            counts=counts,
            drift=drift,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """`rate`: rows a second of each side, 0: no limit. `samples`: of each kind; `values`: they show them."""

    rate: float = 0.0
    values: bool = False
    samples: int = SAMPLES


def plan_dump(plan: Plan) -> dict[str, Any]:
    return asdict(plan)


def plan_load(raw: dict[str, Any]) -> Plan:
    return Plan(tuple(tuple(key) for key in raw["bounds"]), raw["buckets"], raw["one_scan"])


async def make_plan(sides: Sides, limits: Limits) -> Plan:
    if not sides.ordered:
        rows = max(await both(sides.source.estimate(), sides.target.estimate()))
        return Plan(buckets=max(1, min(BUCKETS_LIMIT, rows // BUCKET_ROWS)))
    rows = max(RANGE_ROWS, await sides.source.estimate() // RANGES_LIMIT)
    plan = await sides.source.plan(max(1, min(rows, int(limits.rate))) if limits.rate else rows)
    return plan if isinstance(sides.target, PostgresSide) else replace(plan, one_scan=False)


class Proof:
    """`judge`: None until there are suspects, then made by `open_judge`, as it takes Kafka and a session."""

    def __init__(
        self,
        sides: Sides,
        plan: Plan,
        progress: Progress,
        limits: Limits,
        open_judge: Callable[[], Awaitable[Judge]],
        save: Save,
        *,
        places: Places | None = None,
        wait: Wait | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sides = sides
        self._plan = plan
        self._progress = progress
        self._limits = limits
        self._open_judge = open_judge
        self._judge: Judge | None = None
        self._save = save
        self._places = places
        self._wait = wait
        self._clock_s = clock_s
        self._pause = pause

    async def run(self) -> None:
        """Raises NotPassed, and the errors of the stores; the progress says how far it came."""
        progress, parts = self._progress, self._plan.parts()
        step = self._step(parts)
        while progress.parts < len(parts) and not progress.cut:
            if self._wait is not None:
                progress.paused_s += await self._wait()
            began_s = self._clock_s()
            piece = parts[progress.parts : progress.parts + step]
            await self._piece(piece)
            progress.parts += len(piece)
            if len(progress.suspects) >= JUDGE_AT:
                await self._judge_suspects()
            progress.spent_s += self._clock_s() - began_s
            await self._save(progress)
        while progress.suspects:
            began_s = self._clock_s()
            await self._judge_suspects()
            progress.spent_s += self._clock_s() - began_s
            await self._save(progress)

    def _step(self, parts: Sequence[Part]) -> int:
        if self._plan.buckets:
            return len(parts)
        step = PIECE_RANGES if self._plan.one_scan else EACH_RANGES
        return max(1, min(step, int(self._limits.rate) // RANGE_ROWS)) if self._limits.rate else step

    async def _piece(self, piece: Sequence[Part]) -> None:
        progress, sides = self._progress, self._sides
        began_s = self._clock_s()
        room = SUSPECTS_LIMIT - len(progress.suspects) - len(progress.faults)
        found = await compare(
            sides.source,
            sides.target,
            piece,
            room=room,
            keeps_extra=sides.compared.keeps_extra,
            extras=sides.compared.extras,
            lets_go=sides.compared.lets_go,
        )
        progress.source_rows += found.source_rows
        progress.target_rows += found.target_rows
        progress.suspects += sorted(found.suspects)
        progress.strangers += sorted(found.strangers)
        progress.cut = found.cut
        if self._limits.rate:
            due_s = max(found.source_rows, found.target_rows) / self._limits.rate
            await self._pause(max(0.0, due_s - (self._clock_s() - began_s)))

    async def _judge_suspects(self) -> None:
        progress = self._progress
        if self._judge is None:
            self._judge = await self._open_judge()
        some = progress.suspects[:JUDGE_AT]
        judged = await self._judge.judge(some)
        del progress.suspects[: len(some)]
        counts = progress.counts
        counts.settled += judged.settled
        counts.in_flight += len(judged.in_flight)
        log = self._sides.captured.log
        if log is not None:
            passed = [
                FenceReport.of(log.shown(p.lsn), log.shown(p.position), p.offsets, p.waited_s)
                for p in judged.passed
            ]
            progress.fences = (progress.fences + passed)[-FENCES:]
        strangers = set(progress.strangers)
        for fault in judged.faults:
            if fault.kind == "extra" and self._sides.compared.keeps_extra and fault.key not in strangers:
                continue
            if fault.kind == "missing" and self._sides.compared.lets_go:
                continue
            setattr(counts, fault.kind, getattr(counts, fault.kind) + 1)
            progress.faults.append((fault.kind, fault.key))
            if self._places is not None and fault.kind not in (PARKED, HELD, UNUSABLE):
                progress.drift.add(self._places, _texts(fault.source), _texts(fault.target))
            if sum(sample.kind == fault.kind for sample in progress.samples) < self._limits.samples:
                progress.samples.append(self._sample(fault))

    def _sample(self, fault: Fault) -> Sample:
        names = [pair.name for pair in self._sides.compared.pairs]
        sample = Sample(fault.kind, list(fault.key))
        source = dict(zip(names, fault.source.texts, strict=True)) if fault.source else None
        target = dict(zip(names, fault.target.texts, strict=True)) if fault.target else None
        if source is not None and target is not None:
            sample.columns = [name for name in names if source[name] != target[name]]
        if self._limits.values:
            shown = sample.columns or names
            sample.source = {name: source[name] for name in shown} if source else None
            sample.target = {name: target[name] for name in shown} if target else None
        return sample


async def count_cells(
    sides: Sides, grouping: Grouping, progress: Progress, threshold: float, wait: Wait | None
) -> Cells | None:
    """Rows by group and window, of both sides at nearly the same moment. None: there are too many groups."""
    if wait is not None:
        progress.paused_s += await wait()
    ours, theirs = await both(sides.source.groups(grouping), sides.target.groups(grouping))
    if max(len(ours), len(theirs)) > GROUPS_LIMIT:
        return None
    return cells_of(grouping, ours, theirs, progress.drift, threshold)


def _texts(row: Row | None) -> Sequence[str | None] | None:
    return None if row is None else row.texts


def fill(report: TableReport, sides: Sides, progress: Progress) -> None:
    """What a proof has found, as far as it came."""
    report.path = sides.path
    report.why_not_fast = sides.why_not_fast
    report.cut_by = "ranges" if sides.ordered else "buckets"
    report.notes = list(sides.compared.notes)
    report.columns = [pair.name for pair in sides.compared.pairs]
    report.source_rows, report.target_rows = progress.source_rows, progress.target_rows
    report.counts, report.fences, report.samples = progress.counts, progress.fences, progress.samples
    report.seconds, report.paused_s = progress.spent_s, progress.paused_s
