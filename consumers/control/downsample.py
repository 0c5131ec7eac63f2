"""Samples of a flow's lag, and how many become one. Pure.

Of a span the worst is kept beside the median, so that a short stall is seen a week later. What is unknown is
None and counts for nothing; a span without samples is a gap, not a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.views import FlowState


@dataclass(frozen=True, slots=True)
class Tier:
    """A sample each `step_s` seconds, kept for `kept_s`."""

    step_s: int
    kept_s: int


TIERS = (Tier(10, 2 * 3600), Tier(60, 24 * 3600), Tier(600, 7 * 86_400))
"""From fine to coarse; each step is a multiple of the one before. 3,168 samples a flow."""

_ORDER = {state.value: place for place, state in enumerate(FlowState)}


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one flow from `at_s` (seconds since 1970) on. Whole numbers, as a database keeps them small."""

    at_s: int
    lag_median_ms: int | None
    lag_worst_ms: int | None
    p50_us: int | None  # of the latency
    p99_us: int | None
    rate: float | None  # rows a second
    records: int | None  # that are not in the target
    state: str


def look(flow: Mapping[str, Any], at_s: int) -> Sample:
    """A flow of views.Status at one moment."""
    latency = flow["latency_ms"] or {}
    lag_ms = _whole(flow["lag_s"], 1000)
    p50_us, p99_us = (_whole(latency.get(name), 1000) for name in ("p50", "p99"))
    rate = None if flow["rate"] is None else round(flow["rate"], 1)
    return Sample(at_s, lag_ms, lag_ms, p50_us, p99_us, rate, flow["lag_records"], str(flow["state"]))


def _whole(value: float | None, times: int) -> int | None:
    return None if value is None else round(value * times)


def merged(samples: Sequence[Sample], at_s: int) -> Sample:
    """At least one sample, in the order of time."""
    known = [sample.rate for sample in samples if sample.rate is not None]
    records = [sample.records for sample in samples if sample.records is not None]
    return Sample(
        at_s,
        _of(_median, (sample.lag_median_ms for sample in samples)),
        _of(max, (sample.lag_worst_ms for sample in samples)),
        _of(_median, (sample.p50_us for sample in samples)),
        _of(max, (sample.p99_us for sample in samples)),
        round(sum(known) / len(known), 1) if known else None,
        records[-1] if records else None,
        max((sample.state for sample in samples), key=lambda state: _ORDER.get(state, 0)),
    )


def _of(how: Callable[[list[int]], int], values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return how(known) if known else None


def _median(values: list[int]) -> int:
    """The lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


def steps(samples: Iterable[Sample], step_s: int) -> Iterator[Sample]:
    """Samples of one flow, in the order of time, as those of a coarser step."""
    group: list[Sample] = []
    for sample in samples:
        if group and sample.at_s // step_s != group[0].at_s // step_s:
            yield merged(group, group[0].at_s // step_s * step_s)
            group = []
        group.append(sample)
    if group:
        yield merged(group, group[0].at_s // step_s * step_s)


def tier_of(since_s: int, now_s: int) -> Tier:
    """The finest that reaches so far back; what is older than all of them is not there."""
    return next((tier for tier in TIERS if now_s - since_s <= tier.kept_s), TIERS[-1])


def columns(samples: Iterable[Sample], since_s: int, now_s: int, points: int) -> dict[str, Any]:
    """For charts: lists of equal length, oldest first, of at most `points`; a gap is null."""
    step_s = tier_of(since_s, now_s).step_s
    width_s = step_s * max(1, -((since_s - now_s - step_s) // (step_s * points)))
    first_s = -(-since_s // width_s) * width_s
    found = {sample.at_s: sample for sample in steps(samples, width_s)}
    moments = range(first_s, now_s + 1, width_s)
    rows = [found.get(at_s) for at_s in moments]
    return {
        "step_s": width_s,
        "at_us": [at_s * 1_000_000 for at_s in moments],
        "lag_s": [None if row is None else _part(row.lag_median_ms) for row in rows],
        "lag_worst_s": [None if row is None else _part(row.lag_worst_ms) for row in rows],
        "p50_ms": [None if row is None else _part(row.p50_us) for row in rows],
        "p99_ms": [None if row is None else _part(row.p99_us) for row in rows],
        "rate": [None if row is None else row.rate for row in rows],
        "lag_records": [None if row is None else row.records for row in rows],
        "state": [None if row is None else row.state for row in rows],
    }


def _part(thousandths: int | None) -> float | None:
    return None if thousandths is None else thousandths / 1000
