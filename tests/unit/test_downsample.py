"""How many samples become one: the worst stays, what is unknown stays unknown, and a gap is no zero."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consumers.control.downsample import TIERS, Sample, columns, look, merged, steps, tier_of

HOUR_S = 3600


def sample(at_s: int, lag_ms: int | None = 1, **more: Any) -> Sample:
    figures = {"p50_us": 1, "p99_us": 2, "rate": 1.0, "records": 0, "state": "OK"}
    return Sample(at_s, lag_ms, lag_ms, **{**figures, **more})


def test_a_look_keeps_what_is_unknown_apart_from_zero() -> None:
    flow = {"lag_s": None, "lag_records": 0, "rate": 0.0, "latency_ms": None, "state": "UNKNOWN"}
    assert look(flow, 7) == Sample(7, None, None, None, None, 0.0, 0, "UNKNOWN")
    busy = {"lag_s": 1.5, "lag_records": 4, "rate": 3.21, "state": "SLOW"}
    busy["latency_ms"] = {"p50": 5.25, "p99": 9.0}
    assert look(busy, 7) == Sample(7, 1500, 1500, 5250, 9000, 3.2, 4, "SLOW")


def test_of_a_span_the_worst_and_the_median_are_kept() -> None:
    its = [sample(0, 10, rate=2.0), sample(2, None, rate=None, state="STALLED"), sample(4, 900, p99_us=50)]
    its.append(sample(6, 20, records=None))
    found = merged(its, 0)
    assert (found.lag_median_ms, found.lag_worst_ms, found.p99_us, found.state) == (20, 900, 50, "STALLED")
    assert (found.rate, found.records) == (1.3, 0)
    assert merged([sample(0, None, rate=None, records=None)], 0).lag_worst_ms is None


@given(st.lists(st.integers(0, 5000), unique=True, min_size=1), st.sampled_from([10, 60, 600]))
def test_each_sample_counts_in_the_step_that_it_lies_in(moments: list[int], step_s: int) -> None:
    its = [sample(at_s, at_s) for at_s in sorted(moments)]
    found = list(steps(its, step_s))
    assert [each.at_s for each in found] == sorted({at_s // step_s * step_s for at_s in moments})
    for each in found:
        inside = [at_s for at_s in moments if each.at_s <= at_s < each.at_s + step_s]
        assert each.lag_worst_ms == max(inside)
        assert each.lag_median_ms in inside


def test_the_finest_tier_that_reaches_back_is_read() -> None:
    now_s = 10**9
    assert [tier_of(now_s - back_s, now_s).step_s for back_s in (60, 2 * HOUR_S, 3 * HOUR_S, 10**7)] == [
        10,
        10,
        60,
        600,
    ]
    assert all(after.step_s % before.step_s == 0 for before, after in pairwise(TIERS))


def test_columns_are_of_equal_length_with_gaps_as_null() -> None:
    found = columns([sample(20, 1500), sample(40, None)], 0, 60, 100)
    assert found["at_us"] == [at_s * 1_000_000 for at_s in (0, 10, 20, 30, 40, 50, 60)]
    assert found["lag_s"] == [None, None, 1.5, None, None, None, None]
    assert found["state"] == [None, None, "OK", None, "OK", None, None]
    few = columns([sample(20, 1500), sample(40, 9000)], 0, 60, 2)
    assert (few["step_s"], few["lag_worst_s"], few["lag_s"]) == (40, [1.5, 9.0], [1.5, 9.0])
    assert len({len(few[name]) for name in few if name != "step_s"}) == 1


@given(st.integers(1, 10**6), st.integers(1, 2000))
def test_there_are_never_more_points_than_asked_for(back_s: int, points: int) -> None:
    now_s = 1_800_000_123
    found = columns([], now_s - back_s, now_s, points)
    assert len(found["at_us"]) <= points
    assert all(now_s - back_s <= at_us // 1_000_000 <= now_s for at_us in found["at_us"])
