"""The lag limit puts a comparison off, says so, and does not wait for ever or for what nobody knows."""

from __future__ import annotations

import pytest

from consumers.reconcile import lag
from consumers.reconcile.fence import NotPassed
from consumers.reconcile.lag import LagLimit, Lags


class Heartbeats:
    """Figures in turn, the last one for ever; its clock goes on with each pause."""

    def __init__(self, *figures: Lags) -> None:
        self.figures = list(figures)
        self.now_s = 100.0

    async def lags(self) -> Lags:
        return self.figures.pop(0) if len(self.figures) > 1 else self.figures[0]

    async def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def limit(self, limit_s: float = 30.0) -> LagLimit:
        return LagLimit(limit_s, self.lags, clock_s=lambda: self.now_s, pause=self.pause)


async def test_it_waits_as_long_as_either_end_lags(caplog: pytest.LogCaptureFixture) -> None:
    found = Heartbeats(
        {"the capture of shop": 31.0, "the flow mirror": 0.0},
        {"the capture of shop": 3.0, "the flow mirror": 45.0},
        {"the capture of shop": None, "the flow mirror": 31.0},
        {"the capture of shop": 2.0, "the flow mirror": 30.0},
    )
    assert await found.limit().wait() == pytest.approx(3 * lag.LOOK_S)
    assert caplog.messages == [
        "the comparison waits: the capture of shop is 31.0 s behind",
        "the comparison goes on",
    ]


@pytest.mark.parametrize("known", [{}, {"the flow mirror": None}, {"the flow mirror": 29.9}])
async def test_what_is_below_or_not_known_holds_nothing_up(known: Lags) -> None:
    assert await Heartbeats(known).limit().wait() == 0


async def test_a_lag_that_stays_ends_the_comparison() -> None:
    with pytest.raises(
        NotPassed, match=r"waited for 3600 s: the flow mirror is 60.0 s behind, above .* 30 s"
    ):
        await Heartbeats({"the flow mirror": 60.0}).limit().wait()
