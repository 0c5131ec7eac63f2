"""DescribeProducers: which producers have a transaction open in a partition, and since which offset.

Kafka's protocol guide, API key 61, version 0 (KIP-664, Kafka 2.8); aiokafka has no request for it:

    request  topics[] { name, partitions[] i32 }
    response throttle_ms i32, topics[] { name, partitions[] { partition i32, error i16, message,
             producers[] { producer_id i64, epoch i32, last_sequence i32, last_timestamp i64,
                           coordinator_epoch i32, first_offset i64 (-1: nothing is open) } } }

Arrays and strings are compact, every structure ends with tagged fields. A partition's leader answers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

LEADER_POLL_S = 0.05  # between two looks for a leader that is not there yet, as after a restart


class OpenTransaction(NamedTuple):
    """What one producer wrote to one partition from `first_offset` on is neither committed nor aborted."""

    place: TopicPartition
    producer_id: int
    first_offset: int


class _Response(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        (
                            "active_producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("current_txn_start_offset", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _RequestV0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partition_indexes", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeProducers(Request[_RequestV0]):  # type: ignore[misc]
    API_KEY = 61

    def __init__(self, topics: dict[str, list[int]]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_RequestV0]) -> _RequestV0:
        topics: list[Any] = [(name, partitions, {}) for name, partitions in self._topics.items()]
        return request_struct_class(topics, {})


async def open_transactions(client: Any, places: Iterable[TopicPartition]) -> list[OpenTransaction]:
    """Of all producers. Partitions that are not there have none; a broker before 2.8 cannot say: nothing.

    `client`: an AIOKafkaClient. Waits for leaders; the caller sets the deadline. Raises KafkaError.
    """
    found: list[OpenTransaction] = []
    left = set(places)
    while left:
        by_leader: defaultdict[int, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place in left:
            leader = client.cluster.leader_for_partition(place)
            if leader is not None and leader >= 0:
                by_leader[leader][place.topic].append(place.partition)
        for leader, asked in by_leader.items():
            try:
                response = await client.send(leader, _DescribeProducers(asked))
            except kafka.IncompatibleBrokerVersion:
                return []
            except (kafka.NodeNotReadyError, kafka.KafkaConnectionError, kafka.RequestTimedOutError):
                continue  # asked again
            for topic, partitions, _ in response.topics:
                for partition, code, _, producers, _ in partitions:
                    place = TopicPartition(topic, partition)
                    error = kafka.for_code(code)
                    if error is kafka.NoError:
                        found += [OpenTransaction(place, p[0], p[5]) for p in producers if p[5] >= 0]
                    elif error is not kafka.UnknownTopicOrPartitionError:
                        if not error.retriable:
                            raise error(f"{topic}[{partition}]")
                        continue
                    left.discard(place)
        if left:
            await asyncio.sleep(LEADER_POLL_S)
            await client.force_metadata_update()
    return found
