"""The publisher's pure checks: the chain of recorded offsets, and topics that are not durable."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka

from streamer.changes.position import Position, Stage, TopicState
from streamer.errors import ConfigError, FencedError, KafkaUnavailable, PositionError, TailraceError
from streamer.kafka import client_options, translate
from streamer.publisher.state import check_chain
from streamer.publisher.topics import check_made, weak_points
from streamer.resetting import reset_steps

POSITION = Position("shop", 0, 1, Stage.STREAMING, "7000", 1, 100, flush=9)
STATE = TopicState("shop", "shop.public.orders", 2, {0: 10, 1: 20}, 9)


def test_h17_the_commit_marker_may_end_the_topic() -> None:
    check_chain(POSITION, {STATE.topic: STATE}, {STATE.topic: {0: 12, 1: 900}})


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({}, "topic shop.public.orders was deleted"),
        ({"shop.public.orders": {0: 0, 1: 0}}, "was made again: partition 0 had offset 10, ends at 0"),
        (
            {"shop.public.orders": {0: 11, 1: 22}},
            "lost its end, or was made again: partition 0 had offset 10",
        ),
        ({"shop.public.orders": {0: 12}}, "was made again: partition 1 had offset 20, ends at 0"),
    ],
)
def test_h17_each_loss_is_named(ends: dict[str, dict[int, int]], message: str) -> None:
    with pytest.raises(PositionError) as caught:
        check_chain(POSITION, {STATE.topic: STATE}, ends)
    assert message in caught.value.what
    assert caught.value.fix.startswith(reset_steps("shop"))


def test_h17_a_topic_ahead_of_the_position() -> None:
    ends = {STATE.topic: {0: 12, 1: 22}}
    behind = Position("shop", 0, 1, Stage.STREAMING, "7000", 1, 100, flush=8)
    with pytest.raises(PositionError, match="was written by flush 9, the last position is of 8"):
        check_chain(behind, {STATE.topic: STATE}, ends)
    with pytest.raises(PositionError, match="the last position is of none"):
        check_chain(None, {STATE.topic: STATE}, ends)


def test_h17_weak_topics_are_found() -> None:
    good = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}
    assert weak_points("t", 3, good) == []
    bad = weak_points("t", 1, {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"})
    assert [line.split(":")[0] for line in bad] == [
        "topic t has 1 replica(s)",
        "topic t has min.insync.replicas=1",
        "topic t allows unclean leader election, which drops acknowledged events; kafka-configs --alter "
        "--entity-type topics --entity-name t --add-config unclean.leader.election.enable=false",
    ]


def _wrapped() -> kafka.KafkaError:
    error = kafka.KafkaError("Unexpected error during batch delivery")
    error.__cause__ = kafka.InvalidProducerEpoch()
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (kafka.ProducerFenced(), FencedError),
        (_wrapped(), FencedError),
        (kafka.TopicAuthorizationFailedError("orders"), ConfigError),
        (kafka.TransactionalIdAuthorizationFailed("acme.shop.0"), ConfigError),
        (kafka.SaslAuthenticationFailed("bad credentials"), ConfigError),
        (kafka.MessageSizeTooLargeError(), ConfigError),
        (kafka.OutOfOrderSequenceNumber(), KafkaUnavailable),
        (ConnectionResetError("reset"), KafkaUnavailable),
        (TimeoutError(), KafkaUnavailable),
    ],
)
def test_kafkas_errors_become_ours(error: Exception, kind: type[TailraceError]) -> None:
    translated = translate(error, "publishing", brokers="k:9092")
    assert type(translated) is kind
    assert "publishing" in translated.what
    assert translated.fix


def test_plaintext_needs_no_more_than_brokers() -> None:
    assert client_options("k:9092", None) == {"bootstrap_servers": "k:9092"}


def test_security_becomes_client_options() -> None:
    from streamer.config.settings import Security

    given = {"protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": "u", "password": "p"}
    assert client_options("k:9092", Security.model_validate(given)) == {
        "bootstrap_servers": "k:9092",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }


def test_a_missing_tls_file_is_a_config_error() -> None:
    from streamer.config.settings import Security

    security = Security.model_validate({"protocol": "SSL", "ca_file": "/nowhere/ca.pem"})
    with pytest.raises(ConfigError, match="TLS files for Kafka cannot be used"):
        client_options("k:9092", security)


def test_brokers_that_are_fenced_for_now_are_waited_for() -> None:
    """A broker that is too busy to say that it lives is; more replicas than brokers is the config's fault."""
    code, what = kafka.InvalidReplicationFactorError.errno, "All brokers are currently fenced"
    with pytest.raises(KafkaUnavailable, match="All brokers are currently fenced"):
        check_made("shop.public.orders", code, what, 1, 1)
    with pytest.raises(ConfigError, match="cannot have 3 replicas, the cluster has 1 brokers"):
        check_made("shop.public.orders", code, what, 3, 1)
