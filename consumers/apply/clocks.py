"""What captures tell in their heartbeats: how far their clocks and the sources' are from this process's.

    source - ours = (source - capture's host)    measured by the capture, told in its heartbeat
                  + (capture's host - Kafka)     `at_us` of its heartbeat, less Kafka's time of it
                  - (ours - Kafka)               the same of our own heartbeat

Read from the status topic, beside the pipeline: nothing waits for it, and while Kafka is away the last
known estimate stays. A difference that may be nothing but delay is not applied. And at which epoch the
sources are.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from streamer.changes.topics import status_topic
from streamer.errors import TailraceError
from streamer.kafka import Security
from streamer.status import State, StatusReader, StatusRecord

LOOK_S = 3.0  # clocks drift by microseconds a second; this is for a capture that moves to another host
LOOKS = 5  # of which the least delayed heartbeat counts
RETRY_S = 5.0
HOST_NOISE_US = 50_000  # heartbeats wait so long for a busy process or broker, and Kafka counts in ms
SERVER_NOISE_US = 2_000  # half of a slow round trip to the source

log = logging.getLogger(__name__)

Instance: TypeAlias = tuple[str, str, int]  # part, instance, started_us


@dataclass(frozen=True, slots=True)
class Offset:
    """The clocks that a source's events carry, less this process's clock: microseconds."""

    source_us: int = 0  # of the server, for commit times
    capture_us: int = 0  # of the capture's host, for capture times


def instance_of(record: StatusRecord) -> Instance:
    return record.part, record.instance, record.started_us


def estimate(
    looks: Sequence[Sequence[StatusRecord]], own: Instance, known: Mapping[str, Offset]
) -> dict[str, Offset]:
    """`looks`: the records of the last few looks, the latest last. -> by source.

    A source keeps what is `known` of it while no capture of it streams and speaks. Silence is measured
    by Kafka's clock, as ours is in doubt.
    """
    found = dict(known)
    latest = looks[-1] if looks else ()
    kafka_us = max((record.seen_us for record in latest), default=0)
    own_us = _ahead_us(looks, own)
    for record in sorted(latest, key=lambda record: record.seen_us):  # the one heard last has the source
        server_us = record.detail.get("clock_us")
        streams = record.kind == "capture" and record.state == State.STREAMING
        if not streams or record.ended or record.silent(kafka_us) or not isinstance(server_us, int):
            continue
        theirs_us = _ahead_us(looks, instance_of(record))
        host_us = 0 if own_us is None or theirs_us is None else theirs_us - own_us
        host_us = host_us if abs(host_us) > HOST_NOISE_US else 0
        server_us = server_us if abs(server_us) > SERVER_NOISE_US else 0
        found[record.name] = Offset(server_us + host_us, host_us)
    return found


def epochs(records: Sequence[StatusRecord]) -> dict[str, int]:
    """By source, of captures that speak and publish; the highest, where a fenced one is among them."""
    found: dict[str, int] = {}
    kafka_us = max((record.seen_us for record in records), default=0)
    for record in records:
        epoch = record.detail.get("epoch")
        publishes = record.kind == "capture" and record.state in (State.SNAPSHOT, State.STREAMING)
        if publishes and isinstance(epoch, int) and not (record.ended or record.silent(kafka_us)):
            found[record.name] = max(epoch, found.get(record.name, 0))
    return found


def _ahead_us(looks: Sequence[Sequence[StatusRecord]], instance: Instance) -> int | None:
    """How far its clock is ahead of Kafka's. A delay on the way only makes it look less."""
    return max(
        (r.at_us - r.seen_us for look in looks for r in look if r.seen_us and instance_of(r) == instance),
        default=None,
    )


class Clocks:
    """`await watch()` in a task of its own; `of(flow)` at any time."""

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        name: str,
        sources: Mapping[str, str],
        own: StatusRecord,
    ) -> None:
        """`sources`: by flow. `own`: any heartbeat of this process."""
        self._brokers = brokers
        self._security = security
        self._topic = status_topic(name)
        self._sources = dict(sources)
        self._own = instance_of(own)
        self._looks: deque[list[StatusRecord]] = deque(maxlen=LOOKS)
        self._known: dict[str, Offset] = {}
        self._epochs: dict[str, int] = {}

    def of(self, flow: str) -> Offset | None:
        """None while no heartbeat of its source's capture has been seen."""
        return self._known.get(self._sources[flow])

    def epoch_of(self, flow: str) -> int | None:
        """At which its source was a moment ago; None while no capture of it publishes."""
        return self._epochs.get(self._sources[flow])

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self._looks.clear()
            try:
                async with StatusReader(self._brokers, self._security, self._topic) as topic:
                    while True:
                        await topic.poll()
                        self._look(topic.records())
                        await asyncio.sleep(LOOK_S)
            except TailraceError as error:
                log.debug("clocks not compared: %s", error)
            await asyncio.sleep(RETRY_S)

    def _look(self, records: Sequence[StatusRecord]) -> None:
        captured = set(self._sources.values())
        self._looks.append(
            [
                record
                for record in records
                if instance_of(record) == self._own or (record.kind == "capture" and record.name in captured)
            ]
        )
        self._known = estimate(self._looks, self._own, self._known)
        self._epochs = epochs(self._looks[-1])
