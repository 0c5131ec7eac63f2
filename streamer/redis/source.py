"""A session of a Redis source: from taking its turn to a stop or an error.

Owns the order in which things are taken (H30, H21): the turn, a copy of the shadow that no other process
has, the transactional ids, the position, the shadow, a raised epoch that is durable; then the subscription,
and only when that stands, the scan. What this process may lack is taken before another one is fenced. A line
that is lost ends the session: the next one begins with a gap. The work itself is the Capture's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from streamer.backfill_ledger import Follow, Ledger
from streamer.changes.position import Position, Stage, epoch_without_position
from streamer.changes.topics import backfills_topic, shadow_topic
from streamer.config import Config, RedisSource
from streamer.errors import TailraceError
from streamer.logs import Log
from streamer.publisher import Publisher
from streamer.redis.backfill import RedisBackfill
from streamer.redis.capture import Capture
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.election import Election
from streamer.redis.entities import Entities, types_of
from streamer.redis.gaps import Gaps, Reason
from streamer.redis.journal import Journal
from streamer.redis.notifications import Watch, canary_channel, needed_classes
from streamer.redis.publish import Events
from streamer.redis.rights import capture_rights
from streamer.redis.row_keys import check_row_keys
from streamer.redis.sentinel import follow, locate
from streamer.redis.shadow_copies import discard, own_copy
from streamer.redis.shadow_topic import ShadowTopic
from streamer.redis.signs import Signs
from streamer.stopping import end_tasks

log = Log(__name__)


class Session:
    """One attempt to capture; `report` gives state, reason and whether it is shown as waiting."""

    def __init__(
        self,
        config: Config,
        source: RedisSource,
        publisher: Publisher,
        election: Election,
        journal: Journal,
        *,
        follow: Follow,
        now_us: Callable[[], int],
        report: Callable[[str, str], None],
        stop: asyncio.Event,
    ) -> None:
        self.source = source
        self.publisher = publisher
        self.journal = journal
        self.capture: Capture | None = None  # once it has its turn
        self._config = config
        self._election = election
        self._now_us = now_us
        self._report = report
        self._follow = follow
        self._stop = stop
        self._entities = Entities(source)
        self._rights = capture_rights(config.name, source)

    async def run(self) -> None:
        """Capture until `stop`; any error ends the session."""
        url = self.source.url.get_secret_value()
        async with connect(url, application="tailrace-capture", rights=self._rights):
            pass  # what a person must mend is said before the turn is taken
        async with self._election:
            if not await self._election.wait(self._stop, self._standby):
                return
            self._report("starting", "")
            try:
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._election.watch(), name="keep the turn")
                    await self._captures(url)
                    await end_tasks(watching)
            except BaseExceptionGroup as group:
                self.journal.ended = _reason(group)
                raise

    def _standby(self) -> None:
        name = self.source.name
        self._report("standby", f"another capture of {name} has its turn; this one waits for it")

    async def _captures(self, url: str) -> None:
        publisher, source = self.publisher, self.source
        async with AsyncExitStack() as stack:
            copy = stack.enter_context(own_copy(self._config.base / ".tailrace" / "shadow", source.name))
            await publisher.start()
            loaded = await publisher.load()
            topic = ShadowTopic(
                self._config.kafka.brokers,
                self._config.kafka.security,
                shadow_topic(self._config.name, source.name),
            )
            position, first = self._begin(loaded.position)
            if first:
                discard(copy)
            else:
                check_row_keys(self._config, source.name, self._entities.records, loaded.latest)
            shadow = await topic.open(
                copy, self._entities, since_epoch=position.since_epoch, flush=position.flush
            )
            stack.callback(shadow.close)
            records = {name: self._entities.record(name) for name in source.entities}
            events = Events(self._config.name, source.name, publisher, records, now_us=self._now_us)
            await events.ensure_topics()
            gaps = Gaps()
            server = await locate(url)  # once: both lines go to the same one
            subscription, commands = [
                await stack.enter_async_context(connect(server, application=application, rights=self._rights))
                for application in ("tailrace-watch", "tailrace-read")
            ]
            watch = Watch(
                subscription,
                self._entities.globs(),
                gaps,
                canary=canary_channel(self._config.name, source.name),
                clock_s=time.monotonic,
            )
            await watch.start()
            signs = Signs(
                commands,
                watch,
                gaps,
                needed=needed_classes(types_of(source)),
                manage=source.notifications == "manage",
                clock_s=time.monotonic,
            )
            look = await signs.start()
            if first:
                gaps.take()  # all is read in any case, and nothing was promised before
                why = "first copy"
            else:
                why = self._tell_gaps(gaps, position, look.run_id, commands.where)
            self.journal.server = commands.where
            position = replace(position, system_id=look.run_id)
            position = await publisher.flush(position)
            events.begin(position.epoch, position.lsn)
            self.capture = Capture(
                source,
                publisher,
                self._entities,
                shadow,
                events,
                commands,
                watch,
                signs,
                gaps,
                self.journal,
                topic,
                position,
                now_us=self._now_us,
                clock_s=time.monotonic,
            )
            self.capture.backfill = self._backfill(self.capture, commands)
            log.info("capturing", source=source.name, server=commands.where, epoch=position.epoch, why=why)
            self._report("snapshot" if first else "streaming", "")
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(follow(url, server), name="follow the primary")
                await self.capture.run(why, self._stop, lambda: self._report("streaming", ""))
                await end_tasks(following)

    def _backfill(self, capture: Capture, commands: RedisConnection) -> RedisBackfill:
        return RedisBackfill(
            self.source,
            self._entities,
            capture.reading,
            capture.large,
            commands,
            Ledger(
                self.publisher.topic(backfills_topic(self._config.name)),
                now_us=self._now_us,
                wake=capture.wake,
                since_us=capture.position.since_us,
            ),
            self._follow,
            now_us=self._now_us,
            is_ready=lambda: capture.position.stage is Stage.STREAMING,
        )

    def _begin(self, found: Position | None) -> tuple[Position, bool]:
        """The position that this run begins with, and whether it copies everything anew.

        A first scan that was not finished is a reset: what it published counts as never published.
        """
        if found is not None and found.stage is Stage.STREAMING:
            return replace(found, epoch=found.epoch + 1), False
        if found is None:
            epoch = epoch_without_position(self._now_us() / 1e6)
        else:
            epoch = found.epoch if found.stage is Stage.INTENT else found.epoch + 1
        position = Position(
            source=self.source.name,
            number=self.publisher.number,
            epoch=epoch,
            stage=Stage.SNAPSHOT,
            system_id="",
            timeline=0,
            lsn=found.lsn if found is not None else 0,
            flush=found.flush if found is not None else 0,
            since_epoch=epoch,
            since_us=self._now_us(),
        )
        return position, True

    def _tell_gaps(self, gaps: Gaps, position: Position, run_id: str, where: str) -> str:
        """A new subscription has missed what was before it; and perhaps more can be said."""
        ended = self.journal.ended
        detail = f"a new subscription: {ended}" if ended else "a new subscription: no capture ran before it"
        if self.journal.server not in ("", where):
            gaps.report(Reason.FAILOVER, f"the server was {self.journal.server}, is {where}")
        elif position.system_id not in ("", run_id):
            gaps.report(
                Reason.RESTART,
                f"the server's run was {position.system_id[:8]}, is {run_id[:8]}",
            )
        gaps.report(Reason.CONNECTION, detail)
        if not self.journal.sound_us:
            self.journal.sound_us = position.lsn
        return detail


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    """Of the errors that ended a session, the first in words."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _reason(error)
        if isinstance(error, TailraceError):
            return error.what
    return repr(group.exceptions[0])
