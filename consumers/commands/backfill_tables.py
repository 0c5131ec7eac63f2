"""Which tables of a source a command means: names in, places and their schema records out.

What has been published is known from the topic of schema records, from any machine. What has not been,
and `--all` of a Postgres source, is asked of the source itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aiokafka import TopicPartition

from streamer.changes.names import parts, spelt
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import schemas_topic
from streamer.config import Config, PostgresSource, RedisSource
from streamer.config.base import nearest, no_such
from streamer.config.built import unbuilt_table
from streamer.config.derived import writer_of
from streamer.errors import ConfigError
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.postgres.catalog import list_tables
from streamer.postgres.connection import connect
from streamer.publisher.topics import describe
from streamer.resetting import reset_steps

NAMED_LIMIT = 20  # tables in the advice for a name that is not there


@dataclass(frozen=True, slots=True)
class Place:
    """A table or an entity. `record` None: nothing of it was published yet."""

    schema: str
    table: str
    entity: str
    record: SchemaRecord | None

    @property
    def name(self) -> str:
        return self.entity or spelt(self.schema, self.table)


@dataclass(frozen=True, slots=True)
class Chosen:
    """`passed`: why tables that `--all` would mean are not among `places`."""

    places: list[Place]
    passed: list[str]


async def choose(
    config: Config, brokers: str, source: PostgresSource | RedisSource, names: Sequence[str], *, all_: bool
) -> Chosen:
    """Raises ConfigError: a name that is not there, a table without a key, one that is not captured."""
    records = await read_records(config, brokers, source.name)
    if isinstance(source, RedisSource):
        return Chosen(_entities(config, source, records, source.entities if all_ else names), [])
    if not all_ and all(_find(records, name) for name in names):
        return Chosen([_known(config, source, records[_found(records, name)]) for name in names], [])
    there = await _catalogue(source)
    places, passed = [], []
    for name in there if all_ else names:
        if not all_ and _find(records, name):
            places.append(_known(config, source, records[_found(records, name)]))
            continue
        full = name if all_ else _present(there, name, records, source)
        schema, table = parts(full)
        try:
            _check(config, source, schema, table, has_key=there[full])
        except ConfigError as error:
            if not all_:
                raise
            passed.append(error.what)
            continue
        places.append(Place(schema, table, "", records.get(full)))
    return Chosen(list({place.name: place for place in places}.values()), passed)


async def read_records(config: Config, brokers: str, source: str) -> dict[str, SchemaRecord]:
    """The latest schema record of each table of a source by its name; an entity's by the entity's.

    `source`: also a processor's `out`; its records are named by it, as its topics are.
    """
    topic, security = schemas_topic(config.name), config.kafka.security
    async with admin(brokers, security) as client:
        if topic not in await describe(client, [topic]):
            return {}
    ranges = await offset_ranges(brokers, security, [TopicPartition(topic, 0)])
    processor = writer_of(config.processors, source)
    found = {}
    for each in await read_to_end(brokers, security, ranges, committed=True):
        if each.value is not None:
            record = SchemaRecord.load(each.value)
            if record.source == (processor or source):
                record = replace(record, source=source)
                found[spelt(record.schema, record.table)] = record
    return found


def _entities(
    config: Config, source: RedisSource, records: dict[str, SchemaRecord], names: Iterable[str]
) -> list[Place]:
    places = {}
    for name in names:
        if name not in source.entities:
            raise no_such("entity", name, source.entities, config.path)
        places[name] = Place("", "", name, records.get(spelt(source.name, name)))
    return list(places.values())


def _find(known: Iterable[str], name: str) -> list[str]:
    """schema.table as it is, or as it is spelt; a table alone, in `public` or where it is alone."""
    known = list(known)
    whole = [name] if name in known else [each for each in known if ".".join(parts(each)) == name]
    if whole:
        return whole
    alone = [each for each in known if parts(each)[1] == name]
    return [f"public.{name}"] if f"public.{name}" in alone else alone


def _found(known: Iterable[str], name: str) -> str:
    found = _find(known, name)
    if len(found) > 1:
        raise ConfigError(f"{name!r} is in several schemas", fix=f"write {' or '.join(sorted(found))}")
    return found[0]


def _present(
    there: dict[str, bool], name: str, records: dict[str, SchemaRecord], source: PostgresSource
) -> str:
    if _find(there, name):
        return _found(there, name)
    known = sorted({*there, *records})
    fix = nearest(name, known if "." in name else [parts(each)[1] for each in known])
    if len(known) > NAMED_LIMIT and not fix.startswith("did you mean"):
        fix = f"it captures {len(known)} tables: `tailrace backfill {source.name} --all` takes them all"
    raise ConfigError(f"{source.name} captures no table {name!r}", fix=fix)


async def _catalogue(source: PostgresSource) -> dict[str, bool]:
    """Tables that the config wants -> whether they have a key. Raises SourceUnavailable."""
    async with connect(source.url.get_secret_value(), application="tailrace backfill") as connection:
        return {table.qualified: table.has_key for table in await list_tables(connection, source)}


def _known(config: Config, source: PostgresSource, record: SchemaRecord) -> Place:
    _check(config, source, record.schema, record.table, has_key=bool(record.key_columns))
    return Place(record.schema, record.table, "", record)


def _check(config: Config, source: PostgresSource, schema: str, table: str, *, has_key: bool) -> None:
    name = spelt(schema, table)
    if source.rule_for(schema, table) is None:
        raise ConfigError(
            f"{name} is not captured any more",
            where=str(config.path),
            fix=f"name it in sources.{source.name}.tables",
        )
    for unbuilt in unbuilt_table(source, schema, table):
        raise ConfigError(
            f"{name} is not captured: {unbuilt.path}: {unbuilt.what}", where=str(config.path), fix=unbuilt.fix
        )
    if not has_key:
        raise ConfigError(
            f"{name} has no key by which its events are told apart, so its rows cannot be published again",
            fix=f"give it a primary key, then {reset_steps(source.name)}; or truncate it and fill it again",
        )
