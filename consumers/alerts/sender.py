"""Messages on their way: what is owed is noted, taken and sent; a channel that hangs delays no other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2

from consumers.alerts import webhook
from consumers.alerts.rules import REPEAT, owed
from consumers.control.feed import Delivery, Feed
from streamer.config import Config
from streamer.errors import RetryableError
from streamer.logs import Log
from streamer.status import now_us
from streamer.stopping import stopped_within

POLL_S = 1.0
AT_ONCE = 4  # messages on their way, of each channel
RESOLVED_US = 86_400_000_000  # what ended longer ago is told nobody any more

log = Log("alerts")


class Sender:
    """`run` in a task of each process that watches; of several, each message is sent by one."""

    def __init__(
        self,
        config: Config,
        feed: Feed,
        *,
        is_watching: Callable[[], bool],
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        """`is_watching`: whether this process sees what is wrong; only then it pings outwards."""
        self._config = config
        self._feed = feed
        self._is_watching = is_watching
        self._clock_us = clock_us
        self._sending: dict[asyncio.Task[None], str] = {}
        self._trouble = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; what is on its way then is sent again by the next process."""
        async with httpx2.AsyncClient(follow_redirects=False) as client, asyncio.TaskGroup() as tasks:
            pinging = tasks.create_task(self._ping(client), name="dead man's ping")
            while not stop.is_set():
                await self._turn(client, tasks)
                await stopped_within(stop, POLL_S)
            for task in (pinging, *self._sending):
                task.cancel()

    async def _turn(self, client: httpx2.AsyncClient, tasks: asyncio.TaskGroup) -> None:
        if not self._config.alerts.rules:
            return
        on_way = Counter(self._sending.values())
        room = {name: AT_ONCE - on_way[name] for name in self._config.alerts.channels}
        try:
            await asyncio.to_thread(self._owe)
            for delivery in await asyncio.to_thread(self._feed.take, room, self._clock_us()):
                task = tasks.create_task(self._deliver(client, delivery), name="alert")
                self._sending[task] = delivery.channel
                task.add_done_callback(self._sending.pop)
            self._trouble = ""
        except RetryableError as error:
            if str(error) != self._trouble:
                log.error("alerts wait", reason=str(error))
            self._trouble = str(error)

    def _owe(self) -> None:
        now = self._clock_us()
        wanted = owed(self._feed.to_tell(now - RESOLVED_US), self._config.alerts.rules, now)
        if wanted:
            self._feed.owe(wanted, now)

    async def _deliver(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        channel = self._config.alerts.channels[delivery.channel]
        event = delivery.event
        said: dict[str, Any] = {"number": event.event, "rule": event.rule, "subject": event.subject}
        problem, again_s = "", None
        if channel.webhook is not None:
            secret = channel.secret.get_secret_value() if channel.secret is not None else ""
            body = webhook.message(self._config.name, delivery)
            url = channel.webhook.get_secret_value()
            problem = await webhook.send(client, url, secret, body, int(time.time()))
            again_s = webhook.again_after_s(delivery.tries)
        elif delivery.kind == REPEAT:  # that it began, and is over, the watcher logs
            log.warning(f"still wrong: {event.text}", **said)
        if problem:
            again = "given up" if again_s is None else f"again in {again_s:g} s"
            said["channel"] = delivery.channel
            log.error("an alert did not arrive", problem=problem, next=again, **said)
        await self._note(delivery, problem, again_s)

    async def _note(self, delivery: Delivery, problem: str, again_s: float | None) -> None:
        now = self._clock_us()
        try:
            if problem:
                again_us = None if again_s is None else now + int(again_s * 1e6)
                await asyncio.to_thread(self._feed.failed, delivery, problem, again_us, now)
            else:
                await asyncio.to_thread(self._feed.sent, delivery, now)
        except RetryableError as error:  # taken again after a minute: told twice is better than never
            log.error("what was sent is not noted", reason=str(error))

    async def _ping(self, client: httpx2.AsyncClient) -> None:
        """Somebody outside makes a noise when this stops."""
        dead_man = self._config.alerts.dead_man
        if dead_man is None or dead_man.ping is None:
            return
        while True:
            if not self._is_watching():
                await asyncio.sleep(POLL_S)
                continue
            problem = await webhook.request(client, "GET", dead_man.ping.get_secret_value())
            if problem:
                log.warning("the dead man's ping does not arrive", problem=problem)
            await asyncio.sleep(dead_man.every_s)
