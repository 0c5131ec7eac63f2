"""The lag limit: while a source's capture or the flow's apply is too far behind, a comparison waits.

It is the comparison that is put off, never the flow. A lag that nobody tells (a process is down, or has
only begun) holds nothing up: what stands still is the fence's to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from consumers import views
from consumers.reconcile.fence import NotPassed
from consumers.views.processors import way_of
from streamer.changes.topics import status_topic
from streamer.config import Config, Flow
from streamer.logs import Log
from streamer.status import StatusReader, now_us

LOOK_S = 1.0  # as often as heartbeats come
WAIT_LIMIT_S = 3600.0  # of one pause; behind for an hour, a flow has another trouble than this reader

log = Log(__name__)

Lags = Mapping[str, float | None]  # by who it is that lags, in seconds; None: not known


class LagLimit:
    """`lags`: how it stands now."""

    def __init__(
        self,
        limit_s: float,
        lags: Callable[[], Awaitable[Lags]],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limit_s = limit_s
        self._lags = lags
        self._clock_s = clock_s
        self._pause = pause

    async def wait(self) -> float:
        """Until nobody lags more than the limit; how long that took. Raises NotPassed, and the errors of
        Kafka."""
        began_s = self._clock_s()
        late = ""
        while now := self._late(await self._lags()):
            waited_s = self._clock_s() - began_s
            if not late:
                log.warning(f"the comparison waits: {now}", limit_s=self._limit_s)
            late = now
            if waited_s >= WAIT_LIMIT_S:
                raise NotPassed(
                    f"the comparison has waited for {waited_s:.0f} s: {late}, above the lag limit of"
                    f" {self._limit_s:g} s\n  -> look why with `tailrace lag`; or raise --max-lag"
                )
            await self._pause(LOOK_S)
        waited_s = self._clock_s() - began_s
        if late:
            log.warning("the comparison goes on", waited_s=round(waited_s, 1))
        return waited_s if late else 0.0

    def _late(self, lags: Lags) -> str:
        known = {who: lag_s for who, lag_s in lags.items() if lag_s is not None}
        if not known or max(known.values()) <= self._limit_s:
            return ""
        who = max(known, key=lambda name: known[name])
        return f"{who} is {known[who]:.1f} s behind"


@asynccontextmanager
async def opened_lag_limit(
    config: Config, brokers: str, flow: Flow, limit_s: float
) -> AsyncIterator[LagLimit]:
    """By the heartbeats of both ends of a flow. Raises KafkaUnavailable, ConfigError."""
    async with StatusReader(brokers, config.kafka.security, status_topic(config.name)) as topic:

        async def lags() -> Lags:
            await topic.poll()
            found = views.build(config, topic.records(), now_us())
            for each in found.flows:
                if each["name"] == flow.name and each["state"] == views.FlowState.PAUSED:
                    raise NotPassed(f"flow {flow.name} was paused {each['reason']}")
            captures = {f"the capture of {s['name']}": s["lag_s"] for s in found.sources}
            flows = {f"the flow {f['name']}": f["lag_s"] for f in found.flows}
            ways = (part.partition(":") for part in way_of(config, flow).captures)
            wanted = (*(f"the capture of {source}" for _, _, source in ways), f"the flow {flow.name}")
            return {who: (captures | flows).get(who) for who in wanted}

        yield LagLimit(limit_s, lags)
