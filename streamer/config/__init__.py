"""The config file: one pydantic model of the whole of it, read once, frozen, secrets never printed.

`load(path)` gives a Config or a ConfigError with file:line. Nothing else reads the environment.
"""

from streamer.config.base import describe_postgres
from streamer.config.built import (
    Unbuilt,
    built_flows,
    is_only_compared,
    notes,
    unbuilt_defaults,
    unbuilt_flow,
    unbuilt_sections,
    unbuilt_source,
    unbuilt_table,
    unbuilt_table_rule,
    unbuilt_target,
)
from streamer.config.document import ConfigFileError, Problem
from streamer.config.flows import (
    Batch,
    Chunk,
    ColumnRule,
    DeadLetterLimits,
    Embedding,
    Flow,
    MemoryTarget,
    PostgresTarget,
    RedisTarget,
    SqlTarget,
    Target,
    VectorTarget,
)
from streamer.config.load import load, parse
from streamer.config.redis_entities import RedisColumn, RedisEntity, RedisSource
from streamer.config.root import Config, check_topics
from streamer.config.settings import EMBEDDED, Control, Defaults, Kafka, Security, Topics
from streamer.config.sources import (
    PostgresSource,
    Publication,
    PullSource,
    QuerySource,
    Slot,
    Snapshot,
    Source,
    TableRule,
)
from streamer.config.sql_urls import sql_backend, sqlite_path

__all__ = [
    "EMBEDDED",
    "Batch",
    "Chunk",
    "ColumnRule",
    "Config",
    "ConfigFileError",
    "Control",
    "DeadLetterLimits",
    "Defaults",
    "Embedding",
    "Flow",
    "Kafka",
    "MemoryTarget",
    "PostgresSource",
    "PostgresTarget",
    "Problem",
    "Publication",
    "PullSource",
    "QuerySource",
    "RedisColumn",
    "RedisEntity",
    "RedisSource",
    "RedisTarget",
    "Security",
    "Slot",
    "Snapshot",
    "Source",
    "SqlTarget",
    "TableRule",
    "Target",
    "Topics",
    "Unbuilt",
    "VectorTarget",
    "built_flows",
    "check_topics",
    "describe_postgres",
    "is_only_compared",
    "load",
    "notes",
    "parse",
    "sql_backend",
    "sqlite_path",
    "unbuilt_defaults",
    "unbuilt_flow",
    "unbuilt_sections",
    "unbuilt_source",
    "unbuilt_table",
    "unbuilt_table_rule",
    "unbuilt_target",
]
