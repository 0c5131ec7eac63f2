"""One module a kind of target; the suite runs for each that is named here."""

from __future__ import annotations

from tests.conformance.adapters.base import Adapter
from tests.conformance.adapters.memory import MemoryAdapter
from tests.conformance.adapters.pgvector import PgvectorAdapter
from tests.conformance.adapters.postgres import PostgresAdapter
from tests.conformance.adapters.redis import RedisHashAdapter, RedisJsonAdapter
from tests.conformance.adapters.redis_cluster import RedisClusterAdapter
from tests.conformance.adapters.sql import SqlAdapter

ADAPTERS: dict[str, type[Adapter]] = {
    "memory": MemoryAdapter,
    "pgvector": PgvectorAdapter,
    "postgres": PostgresAdapter,
    "redis-cluster": RedisClusterAdapter,
    "redis-hash": RedisHashAdapter,
    "redis-json": RedisJsonAdapter,
    "sql": SqlAdapter,
}
