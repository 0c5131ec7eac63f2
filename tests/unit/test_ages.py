"""The age of the oldest change that is not applied: for how long a copy is behind."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.apply import report as reporting
from consumers.apply.ages import MARKS_LIMIT, Ages, Mark
from consumers.apply.assemble import Prepared
from consumers.apply.checkpoint import Move, Place
from consumers.apply.epochs import Epochs
from consumers.apply.feed import Standing
from consumers.apply.report import Report
from consumers.targets.base import Batch, Gate, Outcome

PARTITION = TopicPartition("shop.public.people", 0)
PLACE = Place("mirror", *PARTITION)
S = 1_000_000
NOW_S = 1_700_000_000


def test_what_is_applied_no_longer_counts() -> None:
    ages = Ages()
    assert ages.oldest_us(5) is None
    ages.note(10, 100)
    ages.note(20, 300)
    ages.note(10, 200)
    assert ages.oldest_us(9) is None, "nothing is known of what is before"
    assert ages.oldest_us(10) == 100, "the better of two"
    assert ages.oldest_us(19) == 100
    assert ages.oldest_us(20) == 300
    assert ages.oldest_us(10) is None, "passed"


def test_the_marks_are_few_and_err_on_the_old_side() -> None:
    ages = Ages()
    for offset in range(1000):
        ages.note(offset, offset)
        assert len(ages._marks) <= MARKS_LIMIT
    for applied in range(1000):
        oldest_us = ages.oldest_us(applied)
        assert oldest_us is not None
        assert oldest_us <= applied


class Scene:
    """A report of one partition, by a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = 0) -> None:
        self.now_s = NOW_S
        monkeypatch.setattr(reporting.time, "time_ns", lambda: self.now_s * 1000 * S)
        self.report = Report(["mirror"], None, lambda _: None, Epochs({}, lambda _: None))
        self.report.placed({PARTITION: Standing({"mirror": at})}, {PARTITION: at}, {})

    def read(self, offset: int, commit_s: int) -> None:
        prepared = Prepared(Batch([], [], {}, "c"), 0)
        prepared.marks[PLACE] = [Mark(offset, commit_s * S)]
        self.report.read(prepared)

    def applied(self, expected: int, offset: int) -> None:
        move = Move(PLACE, expected, offset, None)
        self.report.applied(Prepared(Batch([], [move], {}, "c"), 0), Outcome(), self.now_s * S)

    def seen(self, end: int) -> Any:
        """The lag, once the log's end was looked at."""
        self.report.ended({PARTITION: end})
        return self.report.detail()["flows"]["mirror"]["lag_s"]


def test_a_change_after_a_quiet_hour_is_not_an_hour_old(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.read(0, NOW_S)
    scene.applied(0, 10)
    assert scene.seen(10) == 0
    scene.now_s += 3600
    assert scene.seen(12) == 0, "it has come within the last second"
    scene.now_s += 30
    assert scene.seen(15) == 30, "and grows while it waits"
    scene.read(10, scene.now_s - 33)
    assert scene.seen(15) == 33, "its commit is known by now"
    scene.applied(10, 12)
    assert scene.seen(15) == 0
    scene.now_s += 5
    assert scene.seen(15) == 5


def test_what_a_gate_holds_is_as_old_as_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was started while it was held, and has read nothing of it."""
    scene = Scene(monkeypatch, at=7)
    scene.report.placed({}, {PARTITION: 20}, {PLACE: 3})
    assert scene.seen(20) is None
    gate = Gate("mirror", PARTITION.topic, "truncate", "held", 5, 5, (NOW_S - 60) * S)
    scene.report.gates([gate])
    assert scene.seen(20) == 60
