"""What a start decides, and what the way back to the position must show: each rule of H2 and H4 alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamer.changes.position import (
    EPOCH_LIMIT,
    LastCommit,
    Partial,
    Position,
    Stage,
    epoch_without_position,
)
from streamer.errors import PositionError
from streamer.postgres.history import Copy, Rejoin, Resume, check_timeline, decide
from streamer.postgres.slot import Slot, System

LSN = 5000
LAST = LastCommit(4000, 70, 900)
POSITION = Position("shop", 0, 3, Stage.STREAMING, "7", 2, LSN, LAST)
CUT = replace(POSITION, partial=Partial(6000, 71, 950, 4, 5900))  # 4 of its row changes are published
SYSTEM = System("7", 2, 9000, "d")
SLOT = Slot("s", "pgoutput", "d", None, 3000, 4500, "reserved")


def decided(
    position: Position | None = POSITION,
    slot: Slot | None = SLOT,
    system: System = SYSTEM,
    published: bool = False,
) -> Copy | Resume:
    return decide("shop", position, slot, system, "s", unknown_epoch=900, published=published)


def test_what_fits_is_resumed() -> None:
    assert decided() == Resume(POSITION)
    assert decided(slot=replace(SLOT, confirmed_flush_lsn=LSN), system=replace(SYSTEM, flush_lsn=LSN)) == (
        Resume(POSITION)
    )


def test_h02_another_server_is_refused() -> None:
    with pytest.raises(PositionError, match="this is another server: its system id is 8"):
        decided(system=replace(SYSTEM, system_id="8"))


def test_h04_each_misfit_of_the_slot_is_named() -> None:
    with pytest.raises(PositionError, match="slot s is gone"):
        decided(slot=None)
    with pytest.raises(PositionError, match="slot s was invalidated"):
        decided(slot=replace(SLOT, wal_status="lost"))
    with pytest.raises(PositionError, match="was moved or made again"):
        decided(slot=replace(SLOT, confirmed_flush_lsn=LSN + 1))
    with pytest.raises(PositionError, match="restored to an earlier point"):
        decided(system=replace(SYSTEM, flush_lsn=LSN - 1))
    with pytest.raises(PositionError, match="no position of source shop"):
        decided(position=None)


def test_h03_each_copy_has_the_epoch_that_it_must_have() -> None:
    assert decided(position=None, slot=None) == Copy(900, "first start", floors=False)
    lost = decided(position=None, slot=None, published=True)
    assert lost == Copy(900, "the position and the slot are lost", floors=True)
    intent = decided(position=replace(POSITION, stage=Stage.INTENT, since_epoch=3))
    assert intent == Copy(3, "the copy that a reset begins", floors=True), "nothing of it is published yet"
    first = decided(position=replace(POSITION, stage=Stage.INTENT))
    assert first == Copy(3, "the first start was interrupted before the slot was made", floors=False)
    begun = decided(position=replace(POSITION, stage=Stage.SNAPSHOT))
    assert isinstance(begun, Copy)
    assert begun.epoch == 4, "rows of epoch 3 are published"
    assert begun.floors


def test_h03_the_epoch_of_a_start_without_a_position() -> None:
    """It rises by one a second and so is above what resets and gaps have counted up from an earlier one."""
    of_2020, of_2088 = 1_577_836_800, 3_723_580_800
    assert epoch_without_position(of_2020 + 1.5) == 1
    assert epoch_without_position(of_2020 + 86_400.0) == 86_400
    assert epoch_without_position(of_2088) < EPOCH_LIMIT


def test_h02_a_failover_beyond_the_position_is_followed() -> None:
    for fork in (LSN, LSN + 1):
        check_timeline("shop", POSITION, replace(SYSTEM, timeline=3), {1: 100, 2: fork})
    check_timeline("shop", POSITION, SYSTEM, {1: 100})


@pytest.mark.parametrize(
    ("timeline", "forks", "reason"),
    [
        (3, {1: 100, 2: LSN - 1}, "left our timeline at 0/1387, before the position 0/1388"),
        (3, {1: 100}, "never had our timeline"),
        (1, {}, "from before the failover"),
    ],
)
def test_h02_every_other_timeline_is_refused(timeline: int, forks: dict[int, int], reason: str) -> None:
    with pytest.raises(PositionError, match=reason):
        check_timeline("shop", POSITION, replace(SYSTEM, timeline=timeline), forks)


def rejoin(position: Position = POSITION, confirmed_lsn: int = LAST.commit_lsn) -> Rejoin:
    return Rejoin("shop", position, confirmed_lsn)


def test_the_known_way_is_gone_along() -> None:
    way = rejoin(CUT, 3000)
    assert way.skipping(3500, 69, 890)
    way.passing(3900)
    assert way.skipping(4000, 70, 900)
    way.passing(CUT.lsn)
    assert not way.skipping(6000, 71, 950)
    way.resumed(6000, 71, 950)
    for ordinal, lsn in enumerate((5600, 5700, 5800, 5900, 5950)):
        way.change(ordinal, lsn)


def test_h04_a_last_commit_that_is_confirmed_is_not_waited_for() -> None:
    way = rejoin(confirmed_lsn=LSN)
    way.passing(LSN + 1)
    assert not way.skipping(LSN + 100, 99, 999)


@pytest.mark.parametrize("other", [(4000, 99, 900), (4000, 70, 901), (4001, 70, 900)])
def test_h04_the_last_commit_is_known_by_lsn_xid_and_time(other: tuple[int, int, int]) -> None:
    with pytest.raises(PositionError, match="restored from a copy"):
        rejoin().skipping(*other)


def test_h04_a_transaction_between_the_last_commit_and_the_position_was_not_there() -> None:
    way = rejoin()
    assert way.skipping(4000, 70, 900)
    with pytest.raises(PositionError, match="transaction 77 at 0/11F8 was not there"):
        way.skipping(4600, 77, 910)


def test_h04_the_last_commit_never_comes_by() -> None:
    way = rejoin()
    way.passing(LSN)
    with pytest.raises(PositionError, match=r"transaction 70 .* no longer shows it"):
        way.passing(LSN + 1)


def test_h04_the_cut_transaction_never_comes_by() -> None:
    way = rejoin(CUT, LSN)
    way.passing(6000)
    with pytest.raises(PositionError, match=r"half of transaction 71 .* no longer shows it"):
        way.passing(6001)


@pytest.mark.parametrize("other", [(6000, 99, 950), (6000, 71, 951), (6001, 71, 950)])
def test_h04_the_cut_transaction_is_known_by_lsn_xid_and_time(other: tuple[int, int, int]) -> None:
    with pytest.raises(PositionError, match="half of transaction 71"):
        rejoin(CUT, LSN).resumed(*other)


def test_h29_the_last_published_change_of_a_cut_transaction_has_its_lsn() -> None:
    with pytest.raises(PositionError, match="row change 3 of transaction 71 was at 0/170C"):
        rejoin(CUT, LSN).change(3, 5901)
