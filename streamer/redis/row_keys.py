"""The key columns of an entity's rows, which stay as they are from one copy of everything to the next (H22).

A row that was published under another key can only be deleted under that one, by a schema that no longer has
it. Owns seeing that the config gives an entity another key than its last schema record has, and the cure.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamer.changes.schema import Column, SchemaRecord
from streamer.changes.topics import entity_topic
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.resetting import reset_fix

KEYED_TABLES = ("postgres", "sql", "pgvector")  # kinds of targets whose tables have the key in their DDL


def check_row_keys(
    config: Config,
    source: str,
    records: Mapping[str, SchemaRecord],
    before: Mapping[tuple[str, str], SchemaRecord],
) -> None:
    """`records`: by entity, of the config; `before`: by (schema, table), the last ones since the last copy.

    Raises ConfigError that names every entity whose rows have another key now.
    """
    changed = {
        name: (_key(known), _key(record))
        for name, record in records.items()
        if (known := before.get((record.schema, record.table))) is not None and _key(known) != _key(record)
    }
    if not changed:
        return
    told = [
        f"of entity {name} was ({_shown(*keys)}) and is ({_shown(*keys[::-1])})"
        for name, keys in changed.items()
    ]
    tables = _tables(config, source, records, changed)
    drop = f"drop the tables that have the old one ({', '.join(tables)}), then " if tables else ""
    raise ConfigError(
        f"the row key {'; '.join(told)}: rows of the old key could not be deleted",
        where=f"sources.{source}.entities",
        fix=f"give back the old key; or, for the new one, {drop}{reset_fix(source)}",
    )


def _key(record: SchemaRecord) -> tuple[Column, ...]:
    return tuple(column for column in record.columns if column.key)


def _shown(key: tuple[Column, ...], other: tuple[Column, ...]) -> str:
    """With types where the names alone are those of the other."""
    names = [column.name for column in key]
    if names != [column.name for column in other]:
        return ", ".join(names)
    return ", ".join(f"{column.name} {column.type}" for column in key)


def _tables(
    config: Config, source: str, records: Mapping[str, SchemaRecord], entities: Mapping[str, object]
) -> list[str]:
    """As `TARGET.SCHEMA.TABLE`, of the flows that take these entities."""
    found = []
    for flow in config.flows.values():
        target = config.targets.get(flow.target)
        if target is None or target.kind not in KEYED_TABLES:
            continue
        for name in entities:
            if flow.matches(entity_topic(source, name)):
                record = records[name]
                found.append(".".join((flow.target, *flow.place(record.schema, record.table))))
    return found
