"""The committed lock of Kafka's jars."""

from __future__ import annotations

import re

from streamer.sandbox.jars import LOCK_FILE, read_lock


def test_the_lock_names_kafka_and_its_logging_and_no_host() -> None:
    lock = read_lock()
    versions = {f"{jar.group}:{jar.artifact}": jar.version for jar in lock.jars}
    assert versions["org.apache.kafka:kafka_2.13"] == lock.kafka
    assert versions["org.apache.kafka:kafka-clients"] == lock.kafka
    logging = {versions[f"org.apache.logging.log4j:log4j-{part}"] for part in ("api", "core", "slf4j-impl")}
    assert len(logging) == 1, "the bridge and the backend are of one version"
    assert "/" not in LOCK_FILE.read_text()


def test_every_jar_has_a_sum_and_a_size() -> None:
    for jar in read_lock().jars:
        assert re.fullmatch(r"[0-9a-f]{64}", jar.sha256), jar
        assert jar.bytes > 0
