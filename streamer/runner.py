"""Capture as a process: sessions of a source one after the other, until a stop or an error that stays.

Owns the reaction to errors: what may pass is waited out with backoff and shown in `status`; what
needs a person ends the process with its message. Also `reset`, which begins a new epoch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import structlog

from streamer.changes.position import Position, Stage
from streamer.config import Config, PostgresSource
from streamer.config.base import nearest
from streamer.config.built import notes, unbuilt_defaults, unbuilt_source
from streamer.errors import BadRecordError, ConfigError, FatalError, RetryableError, TailraceError
from streamer.postgres.connection import connect, place
from streamer.postgres.detail import capture_detail
from streamer.postgres.history import FIRST_EPOCH, epoch_without_position
from streamer.postgres.slot import drop_slot, identify_system, read_slot, try_lock
from streamer.postgres.source import LOCK_POLL_S, Session
from streamer.publisher import Publisher
from streamer.status import StatusWriter
from streamer.stopping import stopped_within

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.25
BACKOFF_LIMIT_S = 5.0  # an outage is noticed as over within this
HEALTHY_S = 30.0  # a session that lasted this long starts the backoff anew
DETAIL_S = 0.2  # the status writer sends once a second; what runs in this process may look sooner
RESET_WAIT_S = 10.0  # how long `reset` waits for a capture that is just ending

_KINDS = (FatalError, ConfigError, BadRecordError, RetryableError)  # the gravest first


def postgres_source(config: Config, name: str) -> PostgresSource:
    """The source of that name, if it is there and can be run; its unbuilt keys are refused by name."""
    source = config.sources.get(name)
    if source is None:
        near = nearest(name, config.sources)
        raise ConfigError(
            f"there is no source {name!r} in {config.path}",
            fix=near or f"the file has: {', '.join(config.sources) or 'none'}",
        )
    for unbuilt in (*unbuilt_source(source), *unbuilt_defaults(config)):
        raise unbuilt.error(str(config.path))
    assert isinstance(source, PostgresSource)  # every other kind is unbuilt
    return source


def now_us() -> int:
    return time.time_ns() // 1000


def make_publisher(config: Config, brokers: str, source: str) -> Publisher:
    return Publisher(
        brokers, config.kafka.security, name=config.name, source=source, topics=config.kafka.topics
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
    source = postgres_source(config, name)
    for note in notes(config):
        log.info(note)
    backoff_s = BACKOFF_FIRST_S
    waiting_since: str | None = None
    while not stop.is_set():
        started = time.monotonic()

        def report(state: str, reason: str) -> None:
            status.update(state=state, reason=reason)
            if reason:
                log.warning(reason, state=state)

        error: TailraceError | None = None
        try:
            await _session(config, source, brokers, stop, status, report, clock_us)
        except* TailraceError as group:
            error = gravest(group)  # raised below: Python before 3.11.4 wraps in a group what is raised here
        if error is None:
            return
        if not isinstance(error, RetryableError):
            status.update(state="error", reason=str(error))
            raise error
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
    source: PostgresSource,
    brokers: str,
    stop: asyncio.Event,
    status: StatusWriter,
    report: Callable[[str, str], None],
    clock_us: Callable[[], int],
) -> None:
    publisher = make_publisher(config, brokers, source.name)
    session = Session(source, publisher, now_us=clock_us, report=report, stop=stop)

    async def show() -> None:
        while True:
            status.update(detail=capture_detail(session, publisher, clock_us()))
            await asyncio.sleep(DETAIL_S)

    try:
        async with asyncio.TaskGroup() as tasks:
            showing = tasks.create_task(show(), name="show the capture")
            await session.run()
            showing.cancel()
        status.update(detail=capture_detail(session, publisher, clock_us()))
    finally:
        await publisher.close()


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


async def reset_source(config: Config, name: str, *, brokers: str) -> int:
    """Begin a new epoch: drop the slot and record the intent to copy again. Returns the epoch.

    The capture of the source must not run: its lock is taken meanwhile. The copy itself is made by
    the next start of the capture; a reset that was cut short is finished by it too.
    """
    source = postgres_source(config, name)
    url = source.url.get_secret_value()
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(connect(url, application="tailrace reset"))
        waited_s = 0.0
        while not await try_lock(control, source.slot.name):
            if waited_s >= RESET_WAIT_S:
                raise FatalError(
                    f"a capture of {name} is running and holds the source's lock",
                    where=place(url),
                    fix=f"stop it (Ctrl-C of `tailrace run` or of `capture {name}`), and reset again",
                )
            await asyncio.sleep(LOCK_POLL_S)
            waited_s += LOCK_POLL_S
        replication = await stack.enter_async_context(
            connect(url, replication=True, application="tailrace reset")
        )
        system = await identify_system(replication)
        publisher = make_publisher(config, brokers, name)
        stack.push_async_callback(publisher.close)
        await publisher.start()
        loaded = await publisher.load(reset=True)
        before = loaded.position
        if before is not None:
            epoch = before.epoch + 1
        elif await read_slot(control, source.slot.name) is None:
            epoch = FIRST_EPOCH
        else:
            epoch = epoch_without_position(time.time())
        position = Position(
            source=name,
            number=publisher.number,
            epoch=epoch,
            stage=Stage.INTENT,
            system_id=system.system_id,
            timeline=system.timeline,
            lsn=0,
        )
        await publisher.flush(replace(position))
        await drop_slot(control, source.slot.name)
    return epoch
