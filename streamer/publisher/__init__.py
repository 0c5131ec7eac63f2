"""Rows in, Kafka transactions out (see publisher.py).

batches: open and sealed record batches, the handle that rows are appended to. transactions: two
transactional ids in turn. topics: making and checking topics. state: what Kafka holds of a source,
read and checked at start. hanging: transactions that Kafka has left open; describe_producers: the
request that finds them. publisher: the flush.
"""

from streamer.publisher.batches import OversizeError, Topic
from streamer.publisher.publisher import Publisher
from streamer.publisher.state import Loaded
from streamer.publisher.topics import (
    COMPACTED,
    SHADOW,
    TopicSettings,
    durability_findings,
    ensure_topic,
    ensure_topics,
)

__all__ = [
    "COMPACTED",
    "SHADOW",
    "Loaded",
    "OversizeError",
    "Publisher",
    "Topic",
    "TopicSettings",
    "durability_findings",
    "ensure_topic",
    "ensure_topics",
]
