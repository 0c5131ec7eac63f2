"""Real servers for the demo, the tests and a first look: PostgreSQL, Valkey and Apache Kafka.

All come through pip (extra `sandbox`) and run as children of a guardian process that leaves
nothing behind. Not for production data.
"""

from __future__ import annotations

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.kafka import KafkaServer
from streamer.sandbox.postgres import PostgresServer
from streamer.sandbox.sandbox import Sandbox
from streamer.sandbox.valkey import ValkeyServer

__all__ = ["KafkaServer", "PostgresServer", "Sandbox", "SandboxError", "ValkeyServer"]
