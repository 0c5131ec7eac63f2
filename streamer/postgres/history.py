"""What a start must do, from the recorded position, the slot and the server's identity. Pure.

The rules are H2, H3 and H4: a position is followed only while it is certain that the server still
has the history in which it was written. Everything else stops with an error that says which part
does not fit and which command mends it; nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamer.changes.lsn import format_lsn
from streamer.changes.position import LastCommit, Position, Stage
from streamer.errors import PositionError
from streamer.postgres.slot import Slot, System
from streamer.resetting import reset_fix


@dataclass(frozen=True, slots=True)
class Copy:
    """Make (or make again) the slot and copy every table, as `epoch`.

    `floors`: older epochs are known to have been there, and may have rows in the targets that a floor must
    remove. At a first start it would remove what was in a given table before.
    """

    epoch: int
    why: str
    floors: bool = True


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on from `position`; its timeline is the server's current one."""

    position: Position


def decide(
    source: str,
    position: Position | None,
    slot: Slot | None,
    system: System,
    slot_name: str,
    *,
    unknown_epoch: int,
    published: bool,
) -> Copy | Resume:
    """What to do at a start; raises PositionError where going on would be a guess.

    `unknown_epoch`: above whatever was before, for a start without a position. `published`: Kafka has
    schema records of the source, so it is not its first start.
    """
    fix = reset_fix(source)
    if position is None:
        if slot is None:
            why = "the position and the slot are lost" if published else "first start"
            return Copy(unknown_epoch, why, floors=published)
        raise PositionError(
            f"slot {slot.name} is there, but Kafka has no position of source {source}: "
            "the positions topic was lost or another program made the slot",
            fix=f"if the slot is Tailrace's, {fix}; if not, name another in `slot: {{name: ...}}`",
        )
    if position.stage is Stage.INTENT:
        if not position.since_epoch:
            why = "the first start was interrupted before the slot was made"
            return Copy(position.epoch, why, floors=False)
        return Copy(position.epoch, "the copy that a reset begins")
    if position.stage is Stage.SNAPSHOT:
        return Copy(position.epoch + 1, "the first copy was interrupted; it starts again as a reset")
    where = f"source {source}"
    if position.system_id != system.system_id:
        raise PositionError(
            f"this is another server: its system id is {system.system_id}, the position was written "
            f"for {position.system_id}",
            where=where,
            fix=f"correct `url`; if the source really moved to this server, {fix}",
        )
    if slot is None:
        raise PositionError(
            f"slot {slot_name} is gone (dropped, or lost in a failover), so the changes since "
            f"{format_lsn(position.lsn)} are not kept for us",
            where=where,
            fix=fix,
        )
    if slot.wal_status == "lost":
        raise PositionError(
            f"slot {slot.name} was invalidated: the server removed WAL it still needed "
            "(max_slot_wal_keep_size or idle_replication_slot_timeout)",
            where=where,
            fix=fix,
        )
    if slot.confirmed_flush_lsn > position.lsn:
        raise PositionError(
            f"slot {slot.name} was moved or made again: it starts at {format_lsn(slot.confirmed_flush_lsn)}, "
            f"behind it lie changes that were never published (position {format_lsn(position.lsn)})",
            where=where,
            fix=fix,
        )
    if system.flush_lsn < position.lsn:
        raise PositionError(
            f"the server's WAL ends at {format_lsn(system.flush_lsn)}, before the position "
            f"{format_lsn(position.lsn)}: it was restored to an earlier point",
            where=where,
            fix=fix,
        )
    return Resume(position)


def check_timeline(source: str, position: Position, system: System, forks: Mapping[int, int]) -> None:
    """On a later timeline the position must lie before the point where ours was left (H2)."""
    if system.timeline == position.timeline:
        return
    where = f"source {source}"
    if system.timeline < position.timeline:
        raise PositionError(
            f"the server is on timeline {system.timeline}, the position on {position.timeline}: "
            "this is a server from before the failover",
            where=where,
            fix=f"point `url` at the current primary, or {reset_fix(source)}",
        )
    fork = forks.get(position.timeline)
    if fork is None or position.lsn > fork:
        left = "never had our timeline" if fork is None else f"left our timeline at {format_lsn(fork)}"
        raise PositionError(
            f"the server (timeline {system.timeline}) {left}, before the position "
            f"{format_lsn(position.lsn)}: changes that were published never happened there",
            where=where,
            fix=reset_fix(source),
        )


class Rejoin:
    """Checks, on the way from the slot's LSN to the position, that the stream is the one we know.

    A restored cold copy keeps system id and timeline (H4); but its transactions differ. Every
    transaction that is skipped must be at or before the last one published, and that one must
    come by with the same xid and commit time.
    """

    def __init__(self, source: str, position: Position, confirmed_lsn: int) -> None:
        self._source = source
        self._position = position
        last = position.last_commit
        self._awaited: LastCommit | None = (
            last if last is not None and last.commit_lsn >= confirmed_lsn else None
        )
        self._last_lsn = last.commit_lsn if last is not None else -1

    def skipping(self, commit_lsn: int, xid: int, commit_us: int) -> bool:
        """Whether this transaction is already published, whole. Called at every Begin."""
        position = self._position
        awaited = self._awaited
        if awaited is not None and commit_lsn >= awaited.commit_lsn:
            if (commit_lsn, xid, commit_us) != (awaited.commit_lsn, awaited.xid, awaited.commit_us):
                raise self._differs(
                    f"at {format_lsn(awaited.commit_lsn)} transaction {awaited.xid} was published, "
                    f"the server now shows transaction {xid} at {format_lsn(commit_lsn)}"
                )
            self._awaited = None
        if commit_lsn >= position.lsn:
            return False
        if commit_lsn > self._last_lsn:
            raise self._differs(
                f"transaction {xid} at {format_lsn(commit_lsn)} was not there when everything before "
                f"{format_lsn(position.lsn)} was published"
            )
        return True

    def passing(self, lsn: int) -> None:
        """The stream has reached `lsn` without a Begin on the way (a keepalive, a message)."""
        awaited = self._awaited
        partial = self._position.partial
        if partial is not None and lsn > partial.commit_lsn:
            raise self._differs(
                f"half of transaction {partial.xid} at {format_lsn(partial.commit_lsn)} was published, "
                "the server no longer shows it"
            )
        if awaited is not None and lsn > self._position.lsn:
            raise self._differs(
                f"transaction {awaited.xid} at {format_lsn(awaited.commit_lsn)} was published, "
                "the server no longer shows it"
            )

    def resumed(self, commit_lsn: int, xid: int, commit_us: int) -> None:
        """The transaction that a flush had cut must be the same one."""
        partial = self._position.partial
        if partial is not None and (commit_lsn, xid, commit_us) != (
            partial.commit_lsn,
            partial.xid,
            partial.commit_us,
        ):
            raise self._differs(
                f"half of transaction {partial.xid} at {format_lsn(partial.commit_lsn)} was published, "
                f"the server now shows transaction {xid} at {format_lsn(commit_lsn)}"
            )

    def change(self, ordinal: int, lsn: int) -> None:
        """Row change `ordinal` of the cut transaction: the last published one must have its LSN (H29)."""
        partial = self._position.partial
        if partial is not None and ordinal == partial.published - 1 and lsn != partial.change_lsn:
            raise self._differs(
                f"row change {ordinal} of transaction {partial.xid} was at {format_lsn(partial.change_lsn)}, "
                f"the server now shows it at {format_lsn(lsn)}"
            )

    def shorter(self, changes: int) -> None:
        """The cut transaction ended after fewer row changes than were published."""
        raise self._differs(f"the transaction that a flush had cut now has only {changes} row changes")

    def _differs(self, what: str) -> PositionError:
        return PositionError(
            f"the server's history is not the one that was published: {what}; it was restored from a copy",
            where=f"source {self._source}",
            fix=reset_fix(self._source),
        )
