"""What a processor stands on in Kafka: its inputs, looked at, and its own topics, made.

All inputs have one partition count, as task p reads partition p of each, and so have the topics between the
hops, the changelog and the control topic. Never alters a topic that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from consumers.apply.dead_letters import ENVELOPE_BYTES
from consumers.apply.dead_letters import PARTITIONS as LETTER_PARTITIONS
from consumers.processors.names import Names
from streamer.changes.topics import clean, is_inner, schemas_topic
from streamer.config import Config, Kafka
from streamer.config.patterns import clean_pattern, fits_topic
from streamer.errors import ConfigError, KafkaUnavailable
from streamer.kafka import admin, describe_cluster, kafka_errors
from streamer.publisher.topics import COMPACTED, SHADOW, data_config, describe, ensure_topics


@dataclass(frozen=True, slots=True)
class Ground:
    """`counts`: partitions of the topics that rows are sent to."""

    cluster_id: str
    inputs: tuple[str, ...]
    partitions: int
    counts: Mapping[str, int]


async def look(config: Config, name: str, *, brokers: str) -> Ground:
    """The inputs as they are. Raises KafkaUnavailable while one is missing, ConfigError."""
    processor, kafka = config.processors[name], config.kafka
    async with admin(brokers, kafka.security) as client:
        counts = await describe(client)
        with kafka_errors("asking for the cluster's id", brokers=brokers):
            cluster_id = str((await describe_cluster(client))["cluster_id"])
    inputs = _inputs(config, name, counts)
    by_count: dict[int, str] = {}
    for topic in inputs:
        by_count.setdefault(counts[topic], topic)
    if len(by_count) > 1:
        (few, one), (many, other), *_ = sorted(by_count.items())
        raise ConfigError(
            f"its inputs have different numbers of partitions: {one} has {few}, {other} has {many}; rows that"
            " belong together would be in different tasks",
            where=f"processors.{name}.in",
            fix=f"make {one} again with {many} partitions (delete the topic, set kafka.topics.partitions to"
            f" {many}, and reset its source)",
        )
    out = {topic: count for topic, count in counts.items() if topic.startswith(processor.out)}
    return Ground(cluster_id, inputs, next(iter(by_count)), out)


def _inputs(config: Config, name: str, topics: Mapping[str, int]) -> tuple[str, ...]:
    ours = {clean(source) for source in config.sources} | {each.out for each in config.processors.values()}
    found: dict[str, None] = {}
    for pattern in config.processors[name].inputs:
        cleaned = clean_pattern(pattern)
        matches = [t for t in topics if t == cleaned or (fits_topic(pattern, t) and not is_inner(t))]
        if not matches:
            known = [t for t in topics if t.partition(".")[0] in ours and not is_inner(t)]
            near = get_close_matches(cleaned, known, n=1)
            raise KafkaUnavailable(
                f"there is no topic {pattern} yet" + (f"; there is {near[0]}" if near else ""),
                where=f"processors.{name}.in",
                fix="start the capture of its source, which makes the topic; or correct the name",
            )
        found.update(dict.fromkeys(sorted(matches)))
    return tuple(found)


async def make(kafka: Kafka, names: Names, ground: Ground, hops: int, *, brokers: str) -> Ground:
    """The processor's own topics. Raises KafkaUnavailable, ConfigError."""
    settings = kafka.topics
    wide = str(2 * settings.max_message_bytes + ENVELOPE_BYTES)  # a parked change with what is said of it
    data = data_config(settings)
    inner = {**data, "max.message.bytes": wide}
    topics: dict[str, tuple[int, Mapping[str, str]]] = {
        names.out: (ground.counts.get(names.out, settings.partitions), data),
        names.state: (ground.partitions, {**SHADOW, "max.message.bytes": wide}),
        names.control: (ground.partitions, inner),
        names.dead_letters: (LETTER_PARTITIONS, inner),
        schemas_topic(names.config): (1, COMPACTED),
    }
    topics |= {names.hop(number): (ground.partitions, inner) for number in range(1, hops)}
    for topic in (names.state, names.control, *(names.hop(number) for number in range(1, hops))):
        there = ground.counts.get(topic, ground.partitions)
        if there != ground.partitions:
            raise ConfigError(
                f"topic {topic} has {there} partitions, the inputs have {ground.partitions}: keys would be in"
                " other tasks than their state",
                where=f"processor {names.processor}",
                fix=f"make the inputs again with {there} partitions; or delete {names.state}, {names.control}"
                f" and {names.hop(1)}, and `tailrace reset {names.processor}`",
            )
    await make_topics(kafka, topics, brokers=brokers)
    counts = {**ground.counts, **{topic: count for topic, (count, _) in topics.items()}}
    return Ground(ground.cluster_id, ground.inputs, ground.partitions, counts)


async def make_topics(
    kafka: Kafka, topics: Mapping[str, tuple[int, Mapping[str, str]]], *, brokers: str
) -> None:
    async with admin(brokers, kafka.security) as client:
        await ensure_topics(client, topics, replication_factor=kafka.topics.replication_factor)
