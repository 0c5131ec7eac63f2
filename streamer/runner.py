"""Capture as a process: sessions of a source one after the other, until a stop or an error that stays.

Owns the reaction to errors, which is the same for every kind of source: what may pass is waited out
with backoff and shown in `status`; what needs a person ends the process with its message. Also
`reset`, which begins a new epoch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Protocol

from streamer.backfills import follow
from streamer.changes.position import EPOCH_LIMIT, Position, Stage, epoch_without_position
from streamer.changes.topics import backfills_topic, bad_topic, shadow_topic
from streamer.config import Config, PostgresSource, RedisSource
from streamer.config.base import no_such
from streamer.config.built import notes, unbuilt_defaults, unbuilt_source
from streamer.errors import BadRecordError, ConfigError, FatalError, RetryableError, TailraceError
from streamer.logs import Log
from streamer.postgres.connection import connect, place
from streamer.postgres.detail import capture_detail
from streamer.postgres.slot import drop_slot, identify_system, try_lock
from streamer.postgres.source import LOCK_POLL_S
from streamer.postgres.source import Session as PostgresSession
from streamer.publisher import COMPACTED, SHADOW, Publisher
from streamer.publisher.topics import BAD
from streamer.redis.election import Election
from streamer.redis.journal import Journal
from streamer.resetting import reset_steps
from streamer.status import StatusWriter
from streamer.stopping import stopped_within

log = Log(__name__)

BACKOFF_FIRST_S = 0.25
BACKOFF_LIMIT_S = 5.0  # an outage is noticed as over within this
HEALTHY_S = 30.0  # a session that lasted this long starts the backoff anew
DETAIL_S = 0.2  # the status writer sends once a second; what runs in this process may look sooner
RESET_WAIT_S = 10.0  # how long `reset` waits for a capture that is just ending

_KINDS = (FatalError, ConfigError, BadRecordError, RetryableError)  # the gravest first


class Session(Protocol):
    """One attempt to capture: from taking the source to a stop or the first error."""

    async def run(self) -> None: ...


def captured_source(config: Config, name: str) -> PostgresSource | RedisSource:
    """The source of that name, if it is there and can be run; its unbuilt keys are refused by name."""
    source = config.sources.get(name)
    if source is None:
        raise no_such("source", name, config.sources, config.path)
    for unbuilt in (*unbuilt_source(source), *unbuilt_defaults(config)):
        raise unbuilt.error(str(config.path))
    assert isinstance(source, (PostgresSource, RedisSource))  # every other kind is unbuilt
    return source


def now_us() -> int:
    return time.time_ns() // 1000


def make_publisher(config: Config, brokers: str, source: str) -> Publisher:
    beside = {}
    if isinstance(config.sources[source], RedisSource):
        beside = {shadow_topic(config.name, source): SHADOW, bad_topic(config.name, source): BAD}
    return Publisher(
        brokers,
        config.kafka.security,
        name=config.name,
        source=source,
        topics=config.kafka.topics,
        beside=beside,
        shared={backfills_topic(config.name): COMPACTED},
        seat=list(config.sources).index(source),
    )


async def run_capture(
    config: Config,
    name: str,
    *,
    brokers: str,
    stop: asyncio.Event,
    status: StatusWriter,
    clock_us: Callable[[], int] = now_us,
) -> None:
    """Capture until `stop`. Raises what waiting cannot mend: FatalError, ConfigError, BadRecordError."""
    source = captured_source(config, name)
    for note in notes(config):
        log.info(note)
    backoff_s = BACKOFF_FIRST_S
    waiting_since: str | None = None
    journal = Journal()
    said: tuple[str, str] | None = None
    while not stop.is_set():
        started = time.monotonic()

        def report(state: str, reason: str, detail: dict[str, Any]) -> None:
            nonlocal said
            status.update(state=state, reason=reason, detail=detail)
            if reason and (state, reason) != said:  # a wait is reported at each of its looks
                log.warning(reason, state=state)
            said = (state, reason)

        error: TailraceError | None = None
        try:
            await _session(config, source, brokers, journal, stop, status, report, clock_us)
        except* TailraceError as group:
            error = gravest(group)  # raised below: Python before 3.11.4 wraps in a group what is raised here
        if error is None:
            return
        if not isinstance(error, RetryableError):
            status.update(state="error", reason=str(error))
            raise error
        if stop.is_set():
            log.info(error.what)
            return
        if time.monotonic() - started >= HEALTHY_S:
            backoff_s = BACKOFF_FIRST_S
        if str(error) != waiting_since:
            log.warning(str(error), state="waiting")
            waiting_since = str(error)
        status.update(state="waiting", reason=str(error))
        await stopped_within(stop, backoff_s * random.uniform(0.75, 1.25))
        backoff_s = min(backoff_s * 2, BACKOFF_LIMIT_S)


async def _session(
    config: Config,
    source: PostgresSource | RedisSource,
    brokers: str,
    journal: Journal,
    stop: asyncio.Event,
    status: StatusWriter,
    report: Callable[[str, str, dict[str, Any]], None],
    clock_us: Callable[[], int],
) -> None:
    publisher = make_publisher(config, brokers, source.name)
    session: Session
    detail: Callable[[], dict[str, Any]]

    def say(state: str, reason: str) -> None:
        report(state, reason, detail())  # together: who reads `streaming` finds the epoch of it

    following = partial(follow, brokers, config.kafka.security, config.name, source=source.name)
    if isinstance(source, RedisSource):
        # Here, for the package `redis` takes as long to import as half of all that a capture needs.
        from streamer.redis.detail import redis_detail  # noqa: PLC0415
        from streamer.redis.source import Session as RedisSession  # noqa: PLC0415

        election = make_election(config, brokers, source.name, clock_us)
        redis = RedisSession(
            config,
            source,
            publisher,
            election,
            journal,
            follow=following,
            now_us=clock_us,
            report=say,
            stop=stop,
        )
        session, detail = redis, lambda: redis_detail(redis, publisher, clock_us())
    else:
        postgres = PostgresSession(
            source,
            publisher,
            follow=following,
            records=backfills_topic(config.name),
            now_us=clock_us,
            report=say,
            met=status.met,
            stop=stop,
        )
        session, detail = postgres, lambda: capture_detail(postgres, publisher, clock_us())

    async def show() -> None:
        while True:
            status.update(detail=detail())
            await asyncio.sleep(DETAIL_S)

    try:
        async with asyncio.TaskGroup() as tasks:
            showing = tasks.create_task(show(), name="show the capture")
            await session.run()
            showing.cancel()
        status.update(detail=detail())
    finally:
        await publisher.close()


def make_election(config: Config, brokers: str, source: str, clock_us: Callable[[], int]) -> Election:
    return Election(
        brokers,
        config.kafka.security,
        group=f"{config.name}.capture.{source}",
        topic=shadow_topic(config.name, source),
        replication_factor=config.kafka.topics.replication_factor,
        now_us=clock_us,
    )


def gravest(group: BaseExceptionGroup[TailraceError]) -> TailraceError:
    """Of the errors that ended a session together, the one that decides."""
    flat: list[TailraceError] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        elif isinstance(error, TailraceError):
            flat.append(error)
    return min(
        flat, key=lambda e: next((i for i, kind in enumerate(_KINDS) if isinstance(e, kind)), len(_KINDS))
    )


async def reset_source(config: Config, name: str, *, brokers: str, above: int = 0) -> int:
    """Begin a new epoch: record the intent to copy again. Returns the epoch.

    `above`: an epoch that a target has already, which the recorded one may be below when positions were
    lost. The capture of the source must not run: its place is taken meanwhile. The copy itself is made by
    the next start of the capture; a reset that was cut short is finished by it too.
    """
    source = captured_source(config, name)
    if isinstance(source, RedisSource):
        return await _reset_redis(config, source, brokers, above)
    return await _reset_postgres(config, source, brokers, above)


def _next_epoch(before: Position | None, above: int) -> int:
    epoch = before.epoch + 1 if before is not None else epoch_without_position(time.time())
    epoch = max(epoch, above + 1)
    if epoch > EPOCH_LIMIT:
        raise ConfigError(
            f"epoch {epoch} is beyond what a target's column holds ({EPOCH_LIMIT})", fix="name a lower one"
        )
    return epoch


async def _reset_redis(config: Config, source: RedisSource, brokers: str, above: int) -> int:
    """What was published is forgotten: the next start reads every key and publishes it, then a floor."""
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        election = await stack.enter_async_context(make_election(config, brokers, source.name, now_us))
        try:
            async with asyncio.timeout(RESET_WAIT_S):
                await election.wait(stop, lambda: None)
        except TimeoutError:
            raise _still_captured(source.name, f"group {config.name}.capture.{source.name}") from None
        publisher = make_publisher(config, brokers, source.name)
        stack.push_async_callback(publisher.close)
        await publisher.start()
        before = (await publisher.load(reset=True)).position
        epoch = _next_epoch(before, above)
        position = Position(
            source=source.name,
            number=publisher.number,
            epoch=epoch,
            since_epoch=epoch,
            since_us=now_us(),
            stage=Stage.INTENT,
            system_id=before.system_id if before is not None else "",
            timeline=0,
            lsn=before.lsn if before is not None else 0,
        )
        await publisher.flush(position)
    return epoch


def _still_captured(name: str, where: str) -> FatalError:
    return FatalError(
        f"a capture of {name} is running and holds the source's lock",
        where=where,
        fix=reset_steps(name),
    )


async def _reset_postgres(config: Config, source: PostgresSource, brokers: str, above: int) -> int:
    """The slot is dropped; the next start makes another and copies the tables."""
    name = source.name
    url = source.url.get_secret_value()
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(connect(url, application="tailrace reset"))
        waited_s = 0.0
        while not await try_lock(control, source.slot.name):
            if waited_s >= RESET_WAIT_S:
                raise _still_captured(name, place(url))
            await asyncio.sleep(LOCK_POLL_S)
            waited_s += LOCK_POLL_S
        replication = await stack.enter_async_context(
            connect(url, replication=True, application="tailrace reset")
        )
        system = await identify_system(replication)
        publisher = make_publisher(config, brokers, name)
        stack.push_async_callback(publisher.close)
        await publisher.start()
        epoch = _next_epoch((await publisher.load(reset=True)).position, above)
        position = Position(
            source=name,
            number=publisher.number,
            epoch=epoch,
            since_epoch=epoch,
            since_us=now_us(),
            stage=Stage.INTENT,
            system_id=system.system_id,
            timeline=system.timeline,
            lsn=0,
        )
        await publisher.flush(position)
        await drop_slot(control, source.slot.name)
    return epoch
