"""`tailrace status` and `tailrace lag`: the heartbeats of all processes, from wherever Kafka is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console, RenderableType
from rich.live import Live

from consumers import screens, views
from consumers.last_proofs import LastProofs
from streamer.changes.topics import status_topic
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import EMBEDDED, Config, load
from streamer.errors import EXIT_OK, KafkaUnavailable, RetryableError
from streamer.status import StatusReader, now_us
from streamer.stopping import end_tasks

REFRESH_S = 1.0  # as often as heartbeats come
ANSWER_LIMIT_S = 10.0  # for one look; a Kafka that is up answers in a second, a frozen one never
RETRY_S = 2.0  # --watch outlives a Kafka that is away

Draw = Callable[[views.Status], RenderableType]
Plain = Callable[[views.Status], dict[str, Any]]


def status(path: Path, *, as_json: bool, watch: bool) -> int:
    return _show(
        load(path), draw=screens.status_screen, plain=lambda s: s.plain(), as_json=as_json, watch=watch
    )


def lag(path: Path, *, as_json: bool, watch: bool) -> int:
    def draw(found: views.Status) -> RenderableType:
        return screens.lag_screen(found, views.lag(found))

    return _show(load(path), draw=draw, plain=views.lag, as_json=as_json, watch=watch)


def _show(config: Config, *, draw: Draw, plain: Plain, as_json: bool, watch: bool) -> int:
    """The exit code; `watch` goes on until it is interrupted."""
    brokers = brokers_of(config)
    if not watch:
        found = uvloop.run(read_here(config, brokers))
        if as_json:
            print_json(plain(found))
        else:
            screens.show(Console(), draw(found))
        return found.exit_code
    if as_json:

        async def line(found: views.Status) -> None:
            print_json(plain(found), line=True)

        uvloop.run(_watch(config, brokers, line))
        return EXIT_OK
    with Live(console=Console(), auto_refresh=False, screen=True) as live:

        async def redraw(found: views.Status) -> None:
            live.update(draw(found), refresh=True)

        uvloop.run(_watch(config, brokers, redraw))
    return EXIT_OK


async def read_once(config: Config, brokers: str) -> views.Status:
    proofs = asyncio.create_task(LastProofs(config).now(), name="last proofs")  # beside Kafka's waits
    try:
        async with StatusReader(brokers, config.kafka.security, status_topic(config.name)) as topic:
            await topic.poll()
            await topic.prove_silence()
            return views.build(config, topic.records(), now_us(), await proofs)
    finally:
        proofs.cancel()


async def read_here(config: Config, brokers: str) -> views.Status:
    reading = asyncio.create_task(read_once(config, brokers), name="status")
    try:
        if not (await asyncio.wait([reading], timeout=ANSWER_LIMIT_S))[0]:
            raise KafkaUnavailable(
                f"Kafka did not answer within {ANSWER_LIMIT_S:.0f} s",
                where=brokers,
                fix="check that the brokers run and can be reached from here; start a frozen one again",
            )
        return await reading
    except KafkaUnavailable as error:
        raise _how_to_start(config, error) from error
    finally:
        await end_tasks(reading)


def _how_to_start(config: Config, error: RetryableError) -> RetryableError:
    """The embedded Kafka lives with `tailrace run`: there are no brokers to look after."""
    if config.kafka.brokers != EMBEDDED or not isinstance(error, KafkaUnavailable):
        return error
    return KafkaUnavailable(
        "the embedded Kafka does not run",
        where=str(config.path),
        fix="start it with `tailrace run` in this folder",
    )


async def _watch(config: Config, brokers: str, take: Callable[[views.Status], Awaitable[None]]) -> None:
    proofs = LastProofs(config)
    while True:
        try:
            async with StatusReader(brokers, config.kafka.security, status_topic(config.name)) as topic:
                while True:
                    await topic.poll()
                    await take(views.build(config, topic.records(), now_us(), await proofs.now()))
                    await asyncio.sleep(REFRESH_S)
        except RetryableError as error:
            finding = views.Finding(views.FINDINGS_FROM, "kafka", str(_how_to_start(config, error)))
            await take(views.Status(config.name, now_us(), [finding], [], [], []))
            await asyncio.sleep(RETRY_S)
