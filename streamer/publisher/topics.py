"""Topics: making them with the settings that the promise needs, and checking those that are there.

Owns Kafka's side of H26 (partition counts) and H17 (replication). Never alters or deletes a topic:
what does not fit is an error that names the command.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from streamer.changes.topics import source_of
from streamer.errors import ConfigError, KafkaUnavailable
from streamer.kafka import describe_cluster, translate
from streamer.resetting import reset_steps

POSITION_PARTITIONS = 64  # sources of one installation; a partition that is not used costs two small files
DURABLE_BROKERS = 3  # from here on two copies outlive the loss of one broker
DURABLE_REPLICAS = 3
DURABLE_IN_SYNC = 2
LEADER_DEADLINE_S = 15.0  # making 64 partitions takes under a second; a loaded cluster takes some
LEADER_POLL_S = 0.02
# Kafka's controller makes what one request asks for in one batch of its log, of 10,000 records at most (from
# 3.5 on): one for each topic, each partition and each setting. Half of it, for those that it adds of its own.
REQUEST_RECORDS = 5_000
NAMED_LIMIT = 5  # topics in a sentence: there may be thousands
STATE_MESSAGE_BYTES = 8 * 2**20  # one flush's topic states: 60 bytes a partition touched

# Small segments, because only closed ones are compacted and a start reads from the first record on;
# small indexes, because Kafka reserves 10 MiB twice for each partition otherwise.
COMPACTED: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "compression.type": "producer",
    "message.timestamp.type": "CreateTime",
    "segment.bytes": str(4 * 2**20),
    "segment.index.bytes": str(64 * 2**10),
    "min.cleanable.dirty.ratio": "0.1",
    "max.message.bytes": str(STATE_MESSAGE_BYTES),
}

# Of a topic that holds a record for every row of a source: larger segments, or 10M rows make 400 files.
SHADOW: Mapping[str, str] = {
    **COMPACTED,
    "segment.bytes": str(64 * 2**20),
    "min.cleanable.dirty.ratio": "0.5",
}

# Values that no entity can use, kept for a person to look at.
BAD: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "retention.ms": str(7 * 86_400_000),
    "max.message.bytes": str(STATE_MESSAGE_BYTES),
}


class TopicSettings(Protocol):
    """The `kafka.topics` part of the config."""

    @property
    def partitions(self) -> int: ...
    @property
    def replication_factor(self) -> int: ...
    @property
    def retention_s(self) -> float: ...
    @property
    def compression(self) -> str: ...
    @property
    def max_message_bytes(self) -> int: ...


def data_config(settings: TopicSettings) -> dict[str, str]:
    retention_ms = -1 if math.isinf(settings.retention_s) else int(settings.retention_s * 1000)
    return {
        "cleanup.policy": "delete",
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
        "retention.ms": str(retention_ms),
        "max.message.bytes": str(settings.max_message_bytes),
    }


async def ensure_topic(
    admin: AIOKafkaAdminClient,
    name: str,
    partitions: int,
    config: Mapping[str, str],
    *,
    replication_factor: int = 1,
) -> None:
    """Make the topic if it is missing and wait for its leaders; one that is there keeps its settings.

    Two processes that make it at once both succeed. Raises ConfigError when it has another number of
    partitions (H26), KafkaUnavailable when its leaders do not come.
    """
    await ensure_topics(admin, {name: (partitions, config)}, replication_factor=replication_factor)


async def ensure_topics(
    admin: AIOKafkaAdminClient,
    topics: Mapping[str, tuple[int, Mapping[str, str]]],
    *,
    replication_factor: int = 1,
) -> set[str]:
    """As `ensure_topic` for {name: (partitions, config)}. Returns the names that it made."""
    described = await describe(admin, topics)
    missing = [name for name in topics if name not in described]
    if missing:
        brokers = len((await _ask(describe_cluster(admin), "reading the cluster"))["brokers"])
        replicas = (
            replication_factor if brokers < DURABLE_BROKERS else max(replication_factor, DURABLE_REPLICAS)
        )
        durable = (
            {"min.insync.replicas": str(DURABLE_IN_SYNC), "unclean.leader.election.enable": "false"}
            if replicas >= DURABLE_REPLICAS
            else {}
        )
        wanted = [
            NewTopic(name, topics[name][0], replicas, topic_configs={**topics[name][1], **durable})
            for name in missing
        ]
        async for name, code, message in create_topics(admin, wanted):
            check_made(name, code, message, replicas, brokers)
    described = await _with_leaders(admin, topics)
    for name, (partitions, config) in topics.items():
        if config.get("cleanup.policy") == "compact" and described[name] != partitions:
            raise ConfigError(
                f"the topic has {described[name]} partitions, Tailrace makes it with {partitions}",
                where=f"topic {name}",
                fix="if something else made it (a client that reads before it is there, with "
                "auto.create.topics.enable on): delete it and start again; else use another `name`",
            )
        check_partitions(name, actual=described[name], wanted=partitions)
    return set(missing)


async def create_topics(
    admin: AIOKafkaAdminClient, wanted: Iterable[NewTopic], *, validate_only: bool = False
) -> AsyncIterator[tuple[str, int, str | None]]:
    """However many, in as many requests as they take: (name, Kafka's error code, its words) of each."""
    for part in requests_of(wanted):
        doing = f"making topics {_named([topic.name for topic in part])}"
        answer = await _ask(admin.create_topics(part, validate_only=validate_only), doing)
        for name, code, *rest in answer.topic_errors:
            yield name, code, rest[0] if rest else None


def requests_of(wanted: Iterable[NewTopic]) -> Iterator[list[NewTopic]]:
    """Each of REQUEST_RECORDS at most; a topic that is more than that goes alone."""
    part: list[NewTopic] = []
    records = 0
    for topic in wanted:
        size = 1 + topic.num_partitions + len(topic.topic_configs)
        if part and records + size > REQUEST_RECORDS:
            yield part
            part, records = [], 0
        part.append(topic)
        records += size
    if part:
        yield part


def _named(names: Sequence[str]) -> str:
    """'a, b and 3 more'."""
    more = len(names) - NAMED_LIMIT
    return ", ".join(names[:NAMED_LIMIT]) + (f" and {more:,} more" if more > 0 else "")


def check_made(name: str, code: int, message: str | None, replicas: int, brokers: int) -> None:
    """Of Kafka's answer to a topic with so many replicas in a cluster of so many brokers. Raises ConfigError,
    KafkaUnavailable where it may be made later."""
    error = kafka.for_code(code)
    if error in {kafka.NoError, kafka.TopicAlreadyExistsError}:
        return
    what = message or error.__name__
    if error in {kafka.InvalidReplicationFactorError, kafka.InvalidReplicationAssignmentError}:
        if replicas <= brokers:  # some of them are fenced: they start, or are too busy to say that they live
            raise KafkaUnavailable(f"topic {name} was not made: {what}", fix="look into the brokers' log")
        raise ConfigError(
            f"topic {name} cannot have {replicas} replicas, the cluster has {brokers} brokers: {what}",
            where="kafka.topics.replication_factor",
            fix=f"set it to {brokers} at most, or start more brokers",
        )
    if error.retriable:
        raise KafkaUnavailable(f"topic {name} was not made: {what}", fix="look into the brokers' log")
    denied = translate(error(), f"making topic {name}", brokers="")
    if isinstance(denied, ConfigError):
        raise ConfigError(denied.what, where=f"topic {name}", fix=denied.fix)
    raise ConfigError(
        f"Kafka refuses to make it: {what}",
        where=f"topic {name}",
        fix="make the topic by hand as the brokers' policy asks, then start again",
    )


def check_partitions(name: str, *, actual: int, wanted: int, recorded: int | None = None) -> None:
    """H26: more partitions would send a key elsewhere, past its own earlier events."""
    if recorded is not None and recorded != actual:
        raise ConfigError(
            f"the topic has {actual} partitions, its events were written to {recorded}: "
            "keys would change their partition and lose their order",
            where=f"topic {name}",
            fix=f"delete the topic, set kafka.topics.partitions to the number you want (it was {recorded}), "
            f"and {reset_steps(source_of(name))}",
        )
    if wanted != actual:
        raise ConfigError(
            f"the topic has {actual} partitions, kafka.topics.partitions says {wanted}",
            where=f"topic {name}",
            fix=f"set kafka.topics.partitions to {actual}; or delete the topic, if its events may go, "
            f"and {reset_steps(source_of(name))}",
        )


async def describe(admin: AIOKafkaAdminClient, names: Collection[str] | None = None) -> dict[str, int]:
    """The topics that are there and their partition counts: of these, or all. Raises KafkaUnavailable."""
    return {t["topic"]: len(t["partitions"]) for t in await _topics(admin, names) if t["error_code"] == 0}


async def _topics(admin: AIOKafkaAdminClient, names: Collection[str] | None) -> list[dict[str, Any]]:
    """By name where they are known: a cluster may have thousands of others.

    aiokafka's `describe_topics` would have a broker with auto.create.topics.enable make what is missing.
    """
    wanted = None if names is None else list(names)
    request = MetadataRequest(wanted, allow_auto_topic_creation=False)
    described: dict[str, Any] = (await _ask(admin._send_request(request), "listing topics")).to_object()
    topics: list[dict[str, Any]] = described["topics"]
    return topics


async def _with_leaders(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, int]:
    waiting = set(names)
    try:
        async with asyncio.timeout(LEADER_DEADLINE_S):
            while True:
                topics = await _topics(admin, names)
                ready = {
                    t["topic"]: len(t["partitions"])
                    for t in topics
                    if t["error_code"] == 0 and t["partitions"]
                    and all(p["error_code"] in (0, 9) and p["leader"] >= 0 for p in t["partitions"])
                }  # fmt: skip
                if waiting <= ready.keys():
                    return ready
                await asyncio.sleep(LEADER_POLL_S)
    except TimeoutError as error:
        raise KafkaUnavailable(
            f"no leader within {LEADER_DEADLINE_S:.0f} s for all partitions of {_named(sorted(waiting))}",
            fix="check that the brokers that hold them run",
        ) from error


async def topic_configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The settings in force, by topic."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    if not resources:
        return {}
    found: dict[str, dict[str, str]] = {}
    for answer in await _ask(admin.describe_configs(resources), "reading topic settings"):
        for code, message, _, name, entries in answer.resources:
            if code:
                raise translate(kafka.for_code(code)(message), f"reading the settings of {name}", brokers="")
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def check_message_bytes(name: str, config: Mapping[str, str], wanted: int) -> None:
    actual = int(config.get("max.message.bytes", wanted))
    if actual < wanted:
        raise ConfigError(
            f"its max.message.bytes is {actual:,}, kafka.topics.max_message says {wanted:,}",
            where=f"topic {name}",
            fix=f"kafka-configs --alter --entity-type topics --entity-name {name} "
            f"--add-config max.message.bytes={wanted}, or lower kafka.topics.max_message",
        )


async def durability_findings(admin: AIOKafkaAdminClient, names: Collection[str]) -> list[str]:
    """H17: on three brokers or more, what would lose acknowledged events. Empty when all is well."""
    brokers = (await _ask(describe_cluster(admin), "reading the cluster"))["brokers"]
    if len(brokers) < DURABLE_BROKERS:
        return []
    replicas = {
        t["topic"]: min(len(p["replicas"]) for p in t["partitions"])
        for t in await _topics(admin, names)
        if t["partitions"]
    }
    configs = await topic_configs(admin, replicas)
    return [
        finding for name in sorted(replicas) for finding in weak_points(name, replicas[name], configs[name])
    ]


def weak_points(name: str, replicas: int, config: Mapping[str, str]) -> list[str]:
    alter = f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config"
    found = []
    if replicas < DURABLE_REPLICAS:
        found.append(
            f"topic {name} has {replicas} replica(s): losing one broker may lose events that were "
            f"acknowledged; give it {DURABLE_REPLICAS} (kafka-reassign-partitions)"
        )
    in_sync = int(config.get("min.insync.replicas", "1"))
    if in_sync < DURABLE_IN_SYNC:
        found.append(
            f"topic {name} has min.insync.replicas={in_sync}: one broker alone may acknowledge events; "
            f"{alter} min.insync.replicas={DURABLE_IN_SYNC}"
        )
    if config.get("unclean.leader.election.enable", "false") == "true":
        found.append(
            f"topic {name} allows unclean leader election, which drops acknowledged events; "
            f"{alter} unclean.leader.election.enable=false"
        )
    return found


async def _ask(call: Any, doing: str) -> Any:
    try:
        return await call
    except (kafka.KafkaError, OSError, TimeoutError) as error:
        raise translate(error, doing, brokers="") from error
