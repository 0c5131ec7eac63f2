"""The checks of Kafka: reachable, topics and transactions allowed, and what is there fits the config."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streamer.changes.topics import clean, positions_topic, schemas_topic, status_topic
from streamer.config import EMBEDDED, Config
from streamer.config.settings import Kafka
from streamer.doctor.check import Findings
from streamer.doctor.postgres import listed
from streamer.errors import ConfigError, TailraceError
from streamer.kafka import admin, client_options, connect, describe_cluster, kafka_errors, shut, translate
from streamer.publisher.topics import (
    DURABLE_BROKERS,
    DURABLE_REPLICAS,
    POSITION_PARTITIONS,
    check_message_bytes,
    check_partitions,
    create_topics,
    data_config,
    describe,
    durability_findings,
    topic_configs,
)

PROBE_TIMEOUT_MS = 10_000


async def check_kafka(findings: Findings, config: Config, data_topics: Collection[str]) -> None:
    """`data_topics`: the names of all topics that the reachable sources will write."""
    settings = config.kafka
    if settings.brokers == EMBEDDED:
        _embedded(findings)
        return
    try:
        async with admin(settings.brokers, settings.security) as client:
            with kafka_errors("reading the cluster", brokers=settings.brokers):
                brokers = len((await describe_cluster(client))["brokers"])
            findings.ok("reachable", f"{settings.brokers}, {brokers} broker{'s' if brokers != 1 else ''}")
            _replicas(findings, brokers, settings.topics.replication_factor)
            await _topics(findings, client, config, brokers, data_topics)
    except TailraceError as error:
        findings.error("reachable", error)
        return
    await _transactions(findings, config)


def _embedded(findings: Findings) -> None:
    if importlib.util.find_spec("jgo") is None:
        findings.fail("embedded", "the embedded Kafka is not installed", "pip install 'tailrace[sandbox]'")
    else:
        findings.ok("embedded", "one node, kept in .tailrace beside the config by `tailrace run`")
        findings.note(
            "copies", "one broker: an acknowledged event is on one disk", "use a cluster of three for more"
        )


def _replicas(findings: Findings, brokers: int, wanted: int) -> None:
    if wanted > brokers:
        what = (
            f"replication_factor is {wanted}, the cluster has {brokers} broker{'s' if brokers != 1 else ''}"
        )
        fix = f"set kafka.topics.replication_factor to {brokers} at most, or start more brokers"
        findings.fail("copies", what, fix)
    elif brokers < DURABLE_BROKERS:
        what = f"{brokers} broker{'s' if brokers != 1 else ''}: an acknowledged event has {wanted} copy"
        findings.note("copies", what, "use a cluster of three for more")
    elif wanted < DURABLE_REPLICAS:
        what = f"{brokers} brokers: topics get {DURABLE_REPLICAS} copies, though the config says {wanted}"
        fix = f"set kafka.topics.replication_factor to {DURABLE_REPLICAS}"
        findings.note("copies", what, fix)
    else:
        findings.ok("copies", f"{wanted} copies on {brokers} brokers")


async def _topics(
    findings: Findings,
    client: AIOKafkaAdminClient,
    config: Config,
    brokers: int,
    data_topics: Collection[str],
) -> None:
    settings = config.kafka.topics
    name = config.name
    wanted = dict.fromkeys(data_topics, settings.partitions)
    wanted |= {positions_topic(name): POSITION_PARTITIONS, schemas_topic(name): 1, status_topic(name): 1}
    there = await describe(client, wanted)
    present = {topic: partitions for topic, partitions in wanted.items() if topic in there}
    fitting = 0
    for topic, partitions in present.items():
        try:
            check_partitions(topic, actual=there[topic], wanted=partitions)
        except ConfigError as error:
            findings.error("partitions", error)
        else:
            fitting += 1
    if fitting:
        findings.ok("topics", f"{fitting} there already, with the right number of partitions")
    missing = {topic: partitions for topic, partitions in wanted.items() if topic not in there}
    if missing:
        await _may_make(findings, client, config.kafka, brokers, missing)
    configs = await topic_configs(client, [t for t in present if t in data_topics])
    for topic, entries in configs.items():
        try:
            check_message_bytes(topic, entries, settings.max_message_bytes)
        except ConfigError as error:
            findings.error("max_message", error)
        policy = entries.get("cleanup.policy", "delete")
        if policy != "delete":
            alter = f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config"
            what = f"topic {topic} has cleanup.policy={policy}: events would be dropped before they are read"
            findings.fail("cleanup", what, f"{alter} cleanup.policy=delete")
    for finding in await durability_findings(client, present):
        findings.warn("copies", finding)


async def _may_make(
    findings: Findings, client: AIOKafkaAdminClient, settings: Kafka, brokers: int, missing: dict[str, int]
) -> None:
    """Asks the brokers whether they would make the missing topics; makes none."""
    replicas = min(settings.topics.replication_factor, brokers)
    config = data_config(settings.topics)
    asked = [NewTopic(t, n, replicas, topic_configs=dict(config)) for t, n in sorted(missing.items())]
    refused: dict[tuple[int, str], list[str]] = {}  # by the error, which may be that of thousands
    async for topic, code, message in create_topics(client, asked, validate_only=True):
        error = kafka.for_code(code)
        if error not in {kafka.NoError, kafka.TopicAlreadyExistsError}:
            refused.setdefault((code, message or error.__name__), []).append(topic)
    for (code, message), topics in refused.items():
        many = f"topics {listed(topics)}" if len(topics) > 1 else f"topic {topics[0]}"
        error = kafka.for_code(code)(message)
        translated = translate(error, f"making {many}", brokers=settings.brokers)
        if isinstance(translated, ConfigError):
            findings.fail("topics", translated.what, translated.fix)
        else:
            them = "them" if len(topics) > 1 else "the topic"
            fix = f"make {them} by hand as the brokers' policy asks, or change kafka.topics"
            findings.fail("topics", f"Kafka would not make the {many}: {message}", fix)
    if not refused:
        findings.ok("topics", f"{len(missing)} can be made: {listed(sorted(missing))}")


async def _transactions(findings: Findings, config: Config) -> None:
    """A transactional id of the doctor's own, under the prefix that capture's ids have."""
    settings = config.kafka
    prefix = f"{clean(config.name)}."
    producer = AIOKafkaProducer(
        **client_options(settings.brokers, settings.security),
        transactional_id=f"{prefix}doctor",
        request_timeout_ms=PROBE_TIMEOUT_MS,
    )
    try:
        await connect(producer, settings.brokers, settings.security)
    except ConfigError as error:
        fix = f"{error.fix}; the ids begin with {prefix}" if "TransactionalId" in error.fix else error.fix
        findings.fail("transactions", error.what, fix)
    except TailraceError as error:
        findings.error("transactions", error)
    else:
        findings.ok("transactions", f"transactional ids {prefix}* may be used")
    finally:
        await shut(producer.stop)
