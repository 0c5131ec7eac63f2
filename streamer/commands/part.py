"""The life of a long-running process: signals, heartbeat, metrics, the deadline for stopping.

Nothing of what such a process does is here.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from socket import gethostname
from typing import Any

import uvloop

from streamer import metrics
from streamer.config import Config
from streamer.errors import TailraceError, bug
from streamer.logs import Log
from streamer.status import State, StatusWriter

log = Log(__name__)

STOP_DEADLINE_S = 7.0  # for the flush in hand; with the heartbeat's last 2 s it is under the promised 10 s


def run_part(
    config: Config,
    kind: str,
    name: str,
    body: Callable[[asyncio.Event, StatusWriter], Awaitable[Any]],
    *,
    metrics_port: int,
    restarts: int = 0,
) -> None:
    """One process of the pipeline, from start to SIGTERM. `config` names the brokers (with_brokers)."""

    async def part() -> None:
        status = StatusWriter(
            config.kafka.brokers,
            config.kafka.security,
            config.name,
            kind=kind,
            part_name=name,
            replication_factor=config.kafka.topics.replication_factor,
            restarts=restarts,
            place=config.place(kind, name, gethostname()),
        )
        with metrics.serve(metrics_port, lambda: status.record) as port:
            if port is not None:
                status.serves_metrics(port)
            async with status:
                try:
                    await until_stopped(lambda stop: body(stop, status), status)
                except TailraceError as error:
                    status.update(state=State.ERROR, reason=str(error))
                    raise
                except Exception as error:
                    status.update(state=State.ERROR, reason=bug(error))
                    raise

    uvloop.run(part())


async def until_stopped(
    body: Callable[[asyncio.Event], Awaitable[Any]],
    status: StatusWriter | None = None,
    *,
    deadline_s: float = STOP_DEADLINE_S,
) -> None:
    """Run the body until it ends by itself, or SIGTERM or SIGINT has set its event and it has ended.

    A body that does not end within the deadline is cancelled: nothing is confirmed that is not
    durable, so a start after it loses nothing. A second signal cancels at once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(body(stop))
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked:
            log.warning("second signal: not waiting for the work in hand")
            task.cancel()
            return
        asked = True
        log.info("stopping", signal=signal.Signals(number).name)
        if status is not None:
            status.update(state=State.STOPPING)
        stop.set()
        loop.call_later(deadline_s, give_up)

    def give_up() -> None:
        if not task.done():
            log.warning("the work in hand did not end in time; it is done again at the next start")
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
