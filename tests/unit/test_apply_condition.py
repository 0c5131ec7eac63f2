"""What apply waits for: how often it asks again, and what it says meanwhile."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from consumers.apply import condition as module
from consumers.apply.condition import BACKOFF_S, Condition
from consumers.apply.epochs import Epochs
from consumers.apply.feed import Feed
from consumers.apply.report import Report
from consumers.apply.resets import Resets
from consumers.views.parts import Part
from streamer.errors import ConfigError, TargetUnavailable
from streamer.status import REASON_LIMIT, StatusWriter

BROKERS = "127.0.0.1:1"  # nothing is asked of them


def made(*flows: str) -> tuple[Condition, StatusWriter]:
    names = list(flows) or ["people"]
    status = StatusWriter(BROKERS, None, "test", kind="apply", part_name="copy")
    report = Report(names, None, lambda _: None, Epochs(dict.fromkeys(names, "shop"), lambda _: 0))
    feed = Feed(BROKERS, None, "test.copy", [], Resets(BROKERS, None, "test"))
    return Condition(names, asyncio.Event(), status, feed, report), status


async def test_h24_a_store_that_does_not_take_writes_is_tried_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with jitter, so that processes which lost it together do not come back together."""
    condition, status = made()
    rounds: list[list[float]] = []
    said: list[tuple[str, str, int]] = []

    async def passed(_: asyncio.Event, seconds: float) -> bool:
        rounds[-1].append(seconds)
        said.append((status.record.state, status.record.reason, status.record.since_us))
        return False

    async def act() -> None:
        if len(rounds[-1]) < len(BACKOFF_S) + 2:
            raise TargetUnavailable(f"full, look {len(rounds[-1])}", fix="it goes on by itself")

    monkeypatch.setattr(module, "stopped_within", passed)
    for _ in range(20):
        rounds.append([])
        assert await condition.patiently("target", act)
        assert status.record.state == "streaming"
    limits = [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
    assert all(a <= b for a, b in pairwise(limits))
    for waits in rounds:
        assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert len({wait for waits in rounds for wait in waits}) == 20 * len(limits)
    first = said[: len(limits)]
    assert {state for state, _, _ in first} == {"waiting"}
    assert len({since_us for _, _, since_us in first}) == 1, "since when, not since the last try"
    assert first[-1][1].startswith(f"full, look {len(limits) - 1}")


@pytest.mark.parametrize("what", ["short", "long " * REASON_LIMIT])
async def test_what_stops_a_flow_is_shown_of_that_flow_alone(what: str) -> None:
    """From the first record on that tells of it, before the keeper reports the next time."""
    condition, status = made("people", "things")
    condition.stop_flow("people", ConfigError(what))
    part = Part("apply:copy", [status.record], status.record.at_us)
    assert part.is_partly_well
    told = {name: (flow["state"], flow["reason"][:5]) for name, flow in status.record.detail["flows"].items()}
    assert told == {"people": ("error", what[:5]), "things": ("streaming", "")}
