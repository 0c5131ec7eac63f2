"""Entities of a Redis source: read once into a file of hashes, and by key for the fence (H19).

Redis has no log. The fence's place is a moment of the server's clock: it is sent through the channel that the
capture listens to, where it stands behind the notification of every write before it; the capture's position
says when it has published all of those. What was never notified is not waited for: that is drift.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from consumers.reconcile import fast, fence
from consumers.reconcile import mapping as maps
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.event_texts import EventTexts, uncast
from consumers.reconcile.expressions import quote
from consumers.reconcile.fast import Pair
from consumers.reconcile.forms import Form, Held
from consumers.reconcile.mapping import Compared, Incomparable
from consumers.reconcile.origins.base import Captured, Logged, Moves, Refused, SourceSide
from consumers.reconcile.sides.base import Order
from consumers.reconcile.sides.redis_entity import EntityReader
from consumers.reconcile.sides.redis_extras import StreamExtras
from consumers.reconcile.sides.redis_touches import Touches
from consumers.reconcile.sides.spooled import SpooledSide
from streamer.changes.backfill import Request
from streamer.changes.topics import entity_topic
from streamer.config import Config, Flow, RedisSource
from streamer.errors import ConfigError
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.entities import Entities
from streamer.redis.notifications import canary_channel, mark_message
from streamer.redis.pivot import PivotEntity
from streamer.redis.reread import Reread
from streamer.redis.rights import capture_rights
from streamer.redis.rows import PlainEntity

APPLICATION = "tailrace-reconcile"
UNSTAMPED_ROUNDS = (
    4  # a member that is put in and taken out all the time shows one difference so often by chance
)


class RedisOrigin:
    def __init__(self, config: Config, settings: RedisSource) -> None:
        self._settings = settings
        self._canary = canary_channel(config.name, settings.name)
        self._rights = capture_rights(config.name, settings)
        self._stack = AsyncExitStack()
        self._lines: list[RedisConnection] = []

    async def open(self) -> None:
        """Two lines: one is for notifications alone."""
        url = self._settings.url.get_secret_value()
        for _ in range(2):
            entered = connect(url, application=APPLICATION, rights=self._rights)
            self._lines.append(await self._stack.enter_async_context(entered))

    async def close(self) -> None:
        await self._stack.aclose()

    async def tables(self, flow: Flow) -> AsyncGenerator[Captured | Refused, None]:
        settings = self._settings
        commands, notices = self._lines
        entities, touches = Entities(settings), Touches(notices)
        clock = RedisClock(commands, self._canary)
        for name, entity in entities.by_name.items():
            if flow.matches(entity_topic(settings.name, name)):
                table = RedisTable(settings, entities, entity, commands, touches, clock)
                try:
                    yield table
                finally:
                    await table.forget()


class RedisClock:
    """A source's places: its server's time in microseconds, sent behind the notifications before it."""

    def __init__(self, connection: RedisConnection, canary: bytes) -> None:
        self._connection = connection
        self._canary = canary

    async def mark(self) -> int:
        """The moment now, which the capture is told of."""
        seconds, micros = await self._connection.command("TIME")
        moment_us = int(seconds) * 1_000_000 + int(micros)
        await self._connection.command("PUBLISH", self._canary, mark_message(moment_us))
        return moment_us


class RedisLog:
    """See base.Logged. `tells`: whether a write of a key is one of its row."""

    def __init__(self, clock: RedisClock, source: str, entity: str, *, tells: bool) -> None:
        self.topic = entity_topic(source, entity)
        self.source = source
        self.hops: fence.Hops | None = None
        self.request: Callable[[str], Request] | None = self._request
        self._clock = clock
        self._entity = entity
        self._tells = tells

    async def insert_lsn(self) -> int:
        return await self._clock.mark()

    async def holds_commits(self) -> bool:
        return False  # what is notified is there

    def moves(self, side: SourceSide) -> Moves:
        assert isinstance(side, RedisSide)
        if not self._tells:
            return Moves(UNSTAMPED_ROUNDS, unusable=side.reader.passed_over)
        return Moves(moved=side.reader.moved, unusable=side.reader.passed_over)

    def shown(self, lsn: int) -> str:
        return datetime.fromtimestamp(lsn / 1_000_000, UTC).isoformat(timespec="microseconds")

    def _request(self, run: str) -> Request:
        return Request(run, self.source, entity=self._entity)


class RedisTable:
    def __init__(
        self,
        settings: RedisSource,
        entities: Entities,
        entity: PlainEntity | PivotEntity,
        connection: RedisConnection,
        touches: Touches,
        clock: RedisClock,
    ) -> None:
        self.qualified = entity.name
        self.schema = settings.name
        self.name = entity.name
        self.record = entity.record
        self.order: Order | None = None
        self.facts: fast.Server | str = "the source is Redis"
        self._tells = _tells(entity)
        self.log: Logged | None = RedisLog(clock, settings.name, entity.name, tells=self._tells)
        self._settings = settings
        self._entities = entities
        self._entity = entity
        self._connection = connection
        self._touches = touches
        self._spooled: list[SpooledSide] = []

    async def forget(self) -> None:
        """The files that its rows are in."""
        for side in self._spooled:
            await side.close()

    async def count(self) -> int:
        columns = [column for column in self.record.columns if column.key]
        forms = [SqlColumn(quote(c.name), Held(c.kind, c.type), Form(c.kind)) for c in columns]
        pairs = [Pair(c.name, form, form, c.name) for c, form in zip(columns, forms, strict=True)]
        side = SpooledSide(self._reader(Compared(pairs, self.record.key_columns, None)))
        try:
            return await side.estimate()
        finally:
            await side.close()

    async def settle(self, compared: Compared) -> None:
        if isinstance(self._entity, PlainEntity) and self._entity.appends:
            if not compared.keeps_extra:
                compared.extras = StreamExtras(Reread(self._connection), self._reader(compared))
            compared.keeps_extra = True
            compared.notes.append("entries that were trimmed from a stream stay: they are no drift")
        for pair in uncast(compared.columns, typed=compared.typed):
            why = f"it is {pair.source.held.type} in Redis and {pair.target.held.type} in the target"
            maps.without(compared, pair, why)
        kept = {pair.name for pair in compared.key_pairs if pair.source.form.cast in (None, "numeric")}
        if not kept.issuperset(compared.key):
            raise Incomparable("a column of its key is of another type in the target")

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> SourceSide:
        if where:
            raise ConfigError(
                "--where is a condition in SQL, and a Redis source has none",
                where=f"source {self._settings.name!r}",
                fix="leave it out: all rows are compared",
            )
        side = RedisSide(self._reader(compared))
        self._spooled.append(side)
        return side

    def _reader(self, compared: Compared) -> EntityReader:
        kinds = {column.name: column.kind for column in self.record.columns}
        return EntityReader(
            self._connection,
            self._settings,
            self._entities,
            self._entity,
            EventTexts(compared),
            {name: kinds[name] for name in compared.key},
            self._touches if self._tells else None,
            compared.notes.append,
        )


def _tells(entity: PlainEntity | PivotEntity) -> bool:
    """Whether a write of a key is one of its row: a key of many rows is written for each of them."""
    if isinstance(entity, PlainEntity):
        return not entity.explodes
    return all(column.fixed_key is None for column in entity.columns)


class RedisSide(SpooledSide):
    def __init__(self, reader: EntityReader) -> None:
        super().__init__(reader)
        self.reader = reader
