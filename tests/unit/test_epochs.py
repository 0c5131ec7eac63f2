"""What a flow is told of whose events the target's versions are above."""

from __future__ import annotations

from consumers.apply.assemble import Prepared
from consumers.apply.checkpoint import LastRecord, Move, Place
from consumers.apply.epochs import PROOF_S, Epochs
from consumers.apply.fold import BOTTOM, PartitionFold, Version, Write
from consumers.targets.base import Batch, Outcome, TableChanges
from streamer.changes.envelope import Change
from streamer.changes.schema import SchemaRecord

RECORD = SchemaRecord(source="shop", schema="public", table="t", identity="d", columns=())


class Scene:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.epoch: int | None = None  # what the capture's heartbeat says
        self.epochs = Epochs({"mirror": "shop"}, lambda _flow: self.epoch, lambda: self.now_s)

    def batch(self, op: str, rows: int, guarded: int, *, floor: Version = BOTTOM, epoch: int = 1) -> None:
        fold = PartitionFold(0)
        change = Change(op, None, {}, epoch, 1, 0, RECORD.id, 0, 0, None)
        fold.rows = {b"%d" % n: Write({}, change, n) for n in range(rows)}
        table = TableChanges("mirror", "shop.public.t", RECORD, "m", "t", [fold], {RECORD.id}, floor)
        move = Move(Place("mirror", "shop.public.t", 0), 0, rows, LastRecord(rows, 0, epoch, 1, 0))
        self.epochs.note(Prepared(Batch([table], [move], {}, "c"), 0), Outcome(guarded={"mirror": guarded}))
        self.now_s += PROOF_S

    def told(self) -> str:
        self.epochs.findings()
        self.now_s += PROOF_S
        return "; ".join(self.epochs.findings())


def test_a_capture_below_what_was_applied_is_told_when_it_lasts() -> None:
    scene = Scene()
    scene.epochs.placed("mirror", 7)
    assert scene.told() == "", "no capture speaks"
    scene.epoch = 6
    assert not scene.epochs.findings(), "its heartbeat may be older than the events"
    assert "`tailrace reset shop --above 7 --yes`" in scene.told()
    scene.epoch = 8
    assert scene.told() == ""


def test_a_copy_of_which_nothing_passes_is_told() -> None:
    scene = Scene()
    scene.batch("r", 5, 5)
    scene.batch("u", 2, 2, floor=(1, 0, 0))  # the copy's own floor
    assert "refused all 7 rows of the copy" in scene.told()
    scene.batch("u", 2, 1)
    assert scene.told() == ""


def test_rows_refused_for_another_reason_are_not() -> None:
    for op, guarded, floor in (("u", 5, BOTTOM), ("r", 4, BOTTOM), ("r", 5, (1, 900, 0))):
        scene = Scene()
        scene.batch(op, 5, guarded, floor=floor)
        assert scene.told() == "", (op, guarded, floor)
