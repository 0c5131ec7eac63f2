"""Where the Kafka of a config is: the brokers it names, or the embedded one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamer.config import EMBEDDED, Config
from streamer.errors import KafkaUnavailable
from streamer.sandbox.kafka import KafkaServer, embedded_bootstrap


def brokers_of(config: Config) -> str:
    """host:port,... also where the file says `embedded`. Raises KafkaUnavailable when that never ran."""
    if config.kafka.brokers != EMBEDDED:
        return config.kafka.brokers
    found = embedded_bootstrap(embedded_folder(config), running=False)
    if found is None:
        raise KafkaUnavailable(
            "the embedded Kafka has not been started yet",
            where=str(config.path),
            fix="start it with `tailrace run` in this folder, or name a Kafka in kafka.brokers",
        )
    return found


@contextmanager
def embedded_kafka(config: Config) -> Iterator[None]:
    """The embedded Kafka, started for a command when no `tailrace run` keeps it."""
    folder = embedded_folder(config)
    if config.kafka.brokers != EMBEDDED or embedded_bootstrap(folder) is not None or not folder.exists():
        yield
        return
    with KafkaServer(folder, keep=True):
        yield


def with_brokers(config: Config) -> Config:
    """The same config with the brokers' addresses in place of `embedded`."""
    return config.model_copy(
        update={"kafka": config.kafka.model_copy(update={"brokers": brokers_of(config)})}
    )


def embedded_folder(config: Config) -> Path:
    return config.base / ".tailrace" / "kafka"
