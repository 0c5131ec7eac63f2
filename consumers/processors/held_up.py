"""Partitions whose readers stand before a transaction that nobody ends. Pure.

Their stable end does not move while their log grows, so nothing is behind and nothing is read. Kafka ends an
open transaction after its timeout; one that is open for longer it has forgotten (see
streamer.publisher.hanging), and only its own writer ends it, when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import TopicPartition

from streamer.publisher.transactions import TRANSACTION_TIMEOUT_MS

HELD_UP_S = TRANSACTION_TIMEOUT_MS / 1000 + 30.0  # brokers look for those that are over every 10 s


class HeldUp:
    """Of one worker."""

    def __init__(self) -> None:
        self._since: dict[TopicPartition, tuple[int, float]] = {}  # the stable end, since when

    def look(self, ends: Mapping[TopicPartition, tuple[int, int]], now_s: float) -> str:
        """What is held up for too long, and what to do; "" when nothing is. `ends`: stable end, end."""
        since: dict[TopicPartition, tuple[int, float]] = {}
        told = ""
        for place, (stable, end) in ends.items():
            if stable >= end:
                continue
            at, began_s = self._since.get(place, (stable, now_s))
            since[place] = at, began_s = (at, began_s) if at == stable else (stable, now_s)
            if now_s - began_s > HELD_UP_S and not told:
                told = (
                    f"a transaction is open in {place.topic}[{place.partition}] from offset {stable} on for"
                    f" {now_s - began_s:.0f} s, and {end - stable:,} records behind it cannot be read"
                    "\n  -> start again who writes this topic, which ends what is left open; or find it and"
                    " abort it with kafka-transactions.sh"
                )
        self._since = since
        return told
