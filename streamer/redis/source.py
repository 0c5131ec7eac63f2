"""A session of a Redis source: from taking its turn to a stop or an error.

Owns the order in which things are taken (H30, H21): the turn, the transactional ids, the position, the
shadow, a raised epoch that is durable; then the subscription, and only when that stands, the scan. A line
that is lost ends the session: the next one begins with a gap. The work itself is the Capture's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from streamer.changes.position import FIRST_EPOCH, Position, Stage, epoch_without_position
from streamer.changes.topics import shadow_topic
from streamer.config import Config, RedisSource
from streamer.errors import TailraceError
from streamer.logs import Log
from streamer.publisher import Publisher
from streamer.redis.capture import Capture
from streamer.redis.connection import connect
from streamer.redis.election import Election
from streamer.redis.entities import Entities
from streamer.redis.gaps import Gaps, Reason
from streamer.redis.journal import Journal
from streamer.redis.notifications import Watch, needed_classes
from streamer.redis.publish import Events
from streamer.redis.shadow_topic import ShadowTopic, discard
from streamer.redis.signs import Signs

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
        self._stop = stop
        self._entities = Entities(source)

    async def run(self) -> None:
        """Capture until `stop`; any error ends the session."""
        url = self.source.url.get_secret_value()
        async with connect(url, application="tailrace-capture"):
            pass  # what a person must mend is said before the turn is taken
        async with self._election:
            if not await self._election.wait(self._stop, self._standby):
                return
            self._report("starting", "")
            try:
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._election.watch(), name="keep the turn")
                    await self._captures(url)
                    watching.cancel()
            except BaseExceptionGroup as group:
                self.journal.ended = _reason(group)
                raise

    def _standby(self) -> None:
        name = self.source.name
        self._report("standby", f"another capture of {name} has its turn; this one waits for it")

    async def _captures(self, url: str) -> None:
        publisher, source = self.publisher, self.source
        await publisher.start()
        loaded = await publisher.load()
        async with AsyncExitStack() as stack:
            topic = ShadowTopic(
                self._config.kafka.brokers,
                self._config.kafka.security,
                shadow_topic(self._config.name, source.name),
            )
            position, first = await self._begin(loaded.position, topic)
            shadow = await topic.open(
                self._path(), self._entities, since_epoch=position.since_epoch, flush=position.flush
            )
            stack.callback(shadow.close)
            records = {name: self._entities.record(name) for name in source.entities}
            events = Events(self._config.name, source.name, publisher, records, now_us=self._now_us)
            await events.ensure_topics()
            gaps = Gaps()
            subscription = await stack.enter_async_context(connect(url, application="tailrace-watch"))
            commands = await stack.enter_async_context(connect(url, application="tailrace-read"))
            watch = Watch(
                subscription,
                self._entities.globs(),
                gaps,
                canary=f"__tailrace__:{self._config.name}:{source.name}".encode(),
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
                why = self._tell_gaps(gaps, position, look.run_id)
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
            log.info("capturing", source=source.name, epoch=position.epoch, why=why)
            self._report("snapshot" if first else "streaming", "")
            await self.capture.run(why, self._stop, lambda: self._report("streaming", ""))

    async def _begin(self, found: Position | None, topic: ShadowTopic) -> tuple[Position, bool]:
        """The position that this run begins with, and whether it copies everything anew.

        A first scan that was not finished is a reset: what it published counts as never published.
        """
        if found is not None and found.stage is Stage.STREAMING:
            return replace(found, epoch=found.epoch + 1), False
        if found is not None:
            epoch = found.epoch if found.stage is Stage.INTENT else found.epoch + 1
        else:
            start, end = await topic.end()
            epoch = FIRST_EPOCH if start == end else epoch_without_position(self._now_us() / 1e6)
        discard(self._path())
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
        )
        return position, True

    def _tell_gaps(self, gaps: Gaps, position: Position, run_id: str) -> str:
        """A new subscription has missed what was before it; and perhaps more can be said."""
        ended = self.journal.ended
        detail = f"a new subscription: {ended}" if ended else "a new subscription: no capture ran before it"
        if position.system_id not in ("", run_id):
            gaps.report(
                Reason.RESTART,
                f"the server's run was {position.system_id[:8]}, is {run_id[:8]}",
            )
        gaps.report(Reason.CONNECTION, detail)
        if not self.journal.sound_us:
            self.journal.sound_us = position.lsn
        return detail

    def _path(self) -> Path:
        return self._config.base / ".tailrace" / "shadow" / f"{self.source.name}.db"


def types_of(source: RedisSource) -> set[str]:
    """The types of keys that the entities and pivots read."""
    types = {entity.redis_type for entity in source.entities.values() if entity.redis_type}
    for entity in source.entities.values():
        if entity.pivot is not None:
            kinds = {kind for name in entity.columns for kind in entity.column(name).keys}
            types |= {"string" if kind == "json" else kind for kind in kinds}
    return types


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    """Of the errors that ended a session, the first in words."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _reason(error)
        if isinstance(error, TailraceError):
            return error.what
    return repr(group.exceptions[0])
