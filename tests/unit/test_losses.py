"""What is said of a store that has lost rows, and for how long they count as coming again."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.losses import SHOWN_S, Losses
from consumers.targets.base import Look

ZERO, ONE = Place("mirror", "shop.public.people", 0), Place("mirror", "shop.public.people", 1)
OTHER = Place("other", "shop.public.things", 0)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def stands(**offsets: int) -> dict[Place, Checkpoint]:
    return {place: Checkpoint(place, offsets[name]) for name, place in NAMED.items() if name in offsets}


NAMED = {"zero": ZERO, "one": ONE, "other": OTHER}


def test_lower_and_missing_checkpoints_and_another_store_are_losses() -> None:
    losses = Losses()
    at = {ZERO: 10, ONE: 0, OTHER: 5}
    assert losses.look_for(Look("a", {ZERO: 10, ONE: 0, OTHER: 5}), at) == set()
    assert losses.look_for(Look("a", {ZERO: 12, OTHER: 5}), at) == set(), "ahead by another process; not made"
    assert losses.look_for(Look("a", {ZERO: 9, OTHER: 5}), at) == {ZERO.topic}
    assert losses.look_for(Look("", {}), at) == {ZERO.topic, OTHER.topic}
    assert losses.look_for(Look("b", dict(at)), at) == set(), "it is known to be gone"
    assert losses.look_for(Look("c", dict(at)), at) == {ZERO.topic, OTHER.topic}
    assert losses.look_for(Look("c", dict(at)), at) == set()


def test_a_loss_is_said_until_it_is_mended_and_for_a_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    losses = Losses(clock)
    losses.placed(stands(zero=10, one=3, other=5), {ONE: 3})
    assert losses.findings({}) == []
    losses.placed(stands(zero=0, one=2, other=5), {ZERO: 10, ONE: 3, OTHER: 5})
    (text,) = losses.findings({ZERO: 0, ONE: 2, OTHER: 5})
    for words in ("flow mirror:", "people[0] from offset 10 back to 0", "people[1] from offset 3 back to 2"):
        assert words in text
    assert [record.getMessage() for record in caplog.records] == [text]
    assert (losses.passed(ZERO), losses.passed(ONE), losses.passed(OTHER)) == (10, 3, 0)
    clock.now_s += SHOWN_S + 1
    assert losses.findings({ZERO: 9, ONE: 3, OTHER: 5}) == [text], "not all of it is there again"
    assert (losses.passed(ZERO), losses.passed(ONE)) == (10, 0)
    assert losses.findings({ZERO: 10, ONE: 3, OTHER: 5}) == []
    assert losses.passed(ZERO) == 0


def test_a_move_that_was_refused_is_a_loss_when_the_checkpoint_is_lower() -> None:
    losses = Losses()
    losses.refused(ZERO, 10)
    losses.refused(OTHER, 5)
    losses.placed(stands(zero=4, other=7), {})
    (text,) = losses.findings({ZERO: 4, OTHER: 7})
    assert "from offset 10 back to 4" in text


def test_a_replay_is_no_loss_and_is_said_until_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has the partition knows it by its checkpoint, also a process that has just begun."""
    losses = Losses()
    losses.placed({ZERO: Checkpoint(ZERO, 4, replay_until=10), OTHER: Checkpoint(OTHER, 5)}, {})
    assert (losses.passed(ZERO), losses.stays(ZERO)) == (10, True)
    assert (losses.passed(OTHER), losses.stays(OTHER)) == (0, False)
    assert losses.findings({ZERO: 4}) == []
    ((flow, text),) = losses.rewound({ZERO: 4}).items()
    assert "people[0] from offset 10 back to 4" in text
    assert "replayed as a person has asked" in text
    assert [record.getMessage() for record in caplog.records] == [f"flow {flow}: {text}"]
    losses.placed({ZERO: Checkpoint(ZERO, 7, replay_until=10)}, {ZERO: 7})
    assert len(caplog.records) == 1, "placed again on the way, it has been said"
    assert losses.rewound({}) == {}, "another process has it now"
    assert losses.findings({ZERO: 10}) == []
    assert losses.rewound({ZERO: 10}) == {}
    assert (losses.passed(ZERO), losses.stays(ZERO)) == (0, False)
    losses.placed({ZERO: Checkpoint(ZERO, 10, replay_until=10)}, {ZERO: 10})
    assert losses.findings({ZERO: 10}) == []


def test_a_store_that_goes_back_further_than_a_replay_has_lost_rows() -> None:
    losses = Losses()
    losses.placed({ZERO: Checkpoint(ZERO, 4, replay_until=10)}, {ZERO: 30})
    assert losses.passed(ZERO) == 30
    (lost,) = losses.findings({ZERO: 4})
    assert "has lost rows" in lost
    (replayed,) = losses.rewound({ZERO: 4}).values()
    assert "replayed as" in replayed


def test_a_flow_is_rewound_until_what_was_lost_is_there_again() -> None:
    losses = Losses()
    losses.placed(stands(zero=0), {ZERO: 10})
    assert "applied again from Kafka's log" in losses.rewound({ZERO: 9})[ZERO.flow]
    assert losses.rewound({ZERO: 10}) == {}


def test_a_second_loss_on_the_way_keeps_the_end() -> None:
    """And partitions that another process has now are its to mend, and are said for a time only."""
    clock = Clock()
    losses = Losses(clock)
    losses.placed(stands(zero=0), {ZERO: 10})
    losses.placed(stands(zero=0), {ZERO: 4})
    assert losses.passed(ZERO) == 10
    assert len(losses.findings({})) == 1
    clock.now_s += SHOWN_S + 1
    assert losses.findings({}) == []


def test_what_comes_again_is_known_to_the_next_process(caplog: pytest.LogCaptureFixture) -> None:
    """As the group's commits have it, by whichever flows read the partition."""
    partition = TopicPartition(ZERO.topic, ZERO.partition)
    second = ZERO._replace(flow="second")
    one = Losses()
    one.come_again({partition: 10})
    one.placed({place: Checkpoint(place) for place in (ZERO, second, ONE)}, {})
    assert [one.passed(place) for place in (ZERO, second, ONE)] == [10, 10, 0]
    assert one.commits([partition], {ZERO: 4, second: 2, ONE: 1}) == {partition: (2, 10)}
    one.placed({ZERO: Checkpoint(ZERO, 4)}, {ZERO: 4})
    assert len(caplog.records) == 2, "each flow's loss is said once"

    next_ = Losses()
    next_.come_again({partition: 10})
    next_.placed({ZERO: Checkpoint(ZERO, 4), second: Checkpoint(second, 10)}, {})
    assert (next_.passed(ZERO), next_.passed(second)) == (10, 0)
    assert next_.commits([partition], {ZERO: 9, second: 12}) == {partition: (9, 10)}
    at = {ZERO: 10, second: 12}
    next_.findings(at)
    assert next_.commits([partition], at) == {partition: (10, 0)}


def test_what_a_flow_holds_is_not_committed_as_applied_by_another() -> None:
    """Nor does a replay, of which the target knows, become a loss."""
    partition = TopicPartition(ZERO.topic, ZERO.partition)
    losses = Losses()
    at = {ZERO: 4, ZERO._replace(flow="second"): 9}
    assert losses.commits([partition], at) == {partition: (4, 0)}
    losses.placed({ZERO: Checkpoint(ZERO, 2, replay_until=9)}, at)
    assert losses.commits([partition], {**at, ZERO: 2}) == {partition: (2, 0)}
    assert losses.commits([partition], {}) == {}, "it was taken away meanwhile"
