"""Names of topics, and which partition a key goes to.

Data topics are `<source>.<schema>.<table>`, or `<source>.<entity>`; characters other than letters,
digits, '.', '_' and '-' become '_'. Partition = crc32(key) mod partitions (librdkafka's
`consistent`), so that one key has one partition and one order; a null key goes to one fixed
partition.
"""

from __future__ import annotations

import re
from zlib import crc32

NULL_KEY_PARTITION = 0
OWN_MESSAGE_PREFIX = "tailrace."  # logical messages of ours: heartbeats, marks, floors
TOPIC_NAME_LIMIT = 249  # characters; Kafka's own limit

_INNER = re.compile(r"[^.]+\.__(?:state|floors|hop[0-9]+)")  # what a processor keeps beside its `out`
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def clean(name: str) -> str:
    """A name as it may stand in a topic's name."""
    return _UNSAFE.sub("_", name)


def data_topic(source: str, schema: str, table: str) -> str:
    return f"{clean(source)}.{clean(schema)}.{clean(table)}"


def entity_topic(source: str, entity: str) -> str:
    return f"{clean(source)}.{clean(entity)}"


def record_topics(source: str, schema: str, table: str) -> tuple[str, ...]:
    """The topics that a schema record's table may have; of a derived one, where `source` is the processor's
    `out`, also that itself."""
    whole = (clean(source),) if not schema and table == source else ()
    return (data_topic(source, schema, table), entity_topic(source, table), *whole)


def message_topic(source: str) -> str:
    """Where logical messages of users go, as Debezium names it."""
    return f"{clean(source)}.message"


def positions_topic(name: str) -> str:
    return f"{clean(name)}.__positions"


def schemas_topic(name: str) -> str:
    return f"{clean(name)}.__schemas"


def status_topic(name: str) -> str:
    return f"{clean(name)}.__status"


def backfills_topic(name: str) -> str:
    """Requests for backfills and how far they are (see changes.backfill)."""
    return f"{clean(name)}.__backfills"


def shadow_topic(name: str, source: str) -> str:
    """What was last published of each row of a source that has no log of its own (H20)."""
    return f"{clean(name)}.__shadow.{clean(source)}"


def bad_topic(name: str, source: str) -> str:
    """Values of a source that its entities cannot use, as JSON records."""
    return f"{clean(name)}.__bad.{clean(source)}"


def is_inner(topic: str) -> bool:
    """Whether it is no topic of rows, though a pattern for all of a processor's would fit it."""
    return _INNER.fullmatch(topic) is not None


def source_of(topic: str) -> str:
    """The source that a data topic is of, as a command names it; 'SOURCE' for a topic of ours."""
    source, _, rest = topic.partition(".")
    return "SOURCE" if rest.startswith("__") else source


def partition_for(key: bytes | None, partitions: int) -> int:
    if key is None:
        return NULL_KEY_PARTITION
    return crc32(key) % partitions


def dead_letters_topic(target: str) -> str:
    """What a target has refused, one record a row (H24)."""
    return f"{clean(target)}.dead_letters"
