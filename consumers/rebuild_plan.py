"""What `tailrace replay --into` is to rebuild, and whether the log has all of it. Nothing is touched here.

A table can be rebuilt from a log that holds every one of its rows: the log begins where the topic did, or a
backfill of the whole table was published after the place where the replay begins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from shlex import quote

from aiokafka import AIOKafkaConsumer

from consumers.apply.mapping import map_columns, soft_column
from consumers.rebuild import Rebuilding
from consumers.replay import Span
from consumers.tail import read
from consumers.targets.postgres_beside import NAME_BYTES, fitting
from consumers.targets.postgres_exchange import Names
from consumers.targets.postgres_rebuilds import KeyColumn
from consumers.targets.postgres_tables import VERSION_COLUMNS
from streamer.changes.backfill import Run, State
from streamer.changes.names import spelt
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic, entity_topic
from streamer.config import Config, Flow, PostgresTarget, RedisSource
from streamer.config.derived import processor_of
from streamer.errors import ConfigError
from streamer.resetting import processor_reset_steps, reset_steps

OLD = "_old"  # what the live table's name ends in when it is kept
_NAME = re.compile(r"[^\0]+").fullmatch


@dataclass(frozen=True, slots=True)
class Subject:
    """The table of a flow that is rebuilt: its last schema record, and its topic."""

    record: SchemaRecord
    topic: str


def check_flow(config: Config, flow: Flow) -> None:
    """Raises ConfigError where the rebuilt table could not be proved, or is of no kind that is exchanged."""
    where = f"flow {flow.name!r}"
    target = config.targets[flow.target]
    if not isinstance(target, PostgresTarget):
        raise ConfigError(
            f"a {target.kind} target cannot exchange two tables in one transaction with its checkpoints",
            where=where,
            fix="replay without --into: rows that are newer stay as they are",
        )
    processor = processor_of(config, flow)
    if processor is not None:
        raise ConfigError(
            f"the rows are those of the processor {processor}, and a table is rebuilt from a source's alone",
            where=where,
            fix=f"replay without --into; or, to have them derived again, {processor_reset_steps(processor)}",
        )
    modes = {"write": flow.write, "delete": flow.delete, "truncate": flow.truncate}
    given = [f"{name}: {mode}" for name, mode in modes.items() if mode in ("append", "insert_only", "ignore")]
    if soft_column(flow) is not None:
        raise ConfigError(
            f"delete: {flow.delete} keeps rows that the source has no more, and nothing proves those of a"
            " rebuilt table",
            where=where,
            fix="replay without --into: rows that are newer stay as they are",
        )
    if given:
        raise ConfigError(
            f"{given[0]} makes its table another thing than a copy, so that nothing proves the rebuilt one",
            where=where,
            fix="a second flow to another table fills that one from the log's start",
        )


def subject_of(flow: Flow, topics: Collection[str], records: Mapping[str, SchemaRecord]) -> Subject:
    """`topics`: of the flow, those that are asked for. Raises ConfigError."""
    found = []
    for record in records.values():
        names = {data_topic(record.source, record.schema, record.table)}
        names.add(entity_topic(record.source, record.table))
        found += [Subject(record, topic) for topic in sorted(names.intersection(topics))]
    if len(found) > 1:
        raise ConfigError(
            f"--into is one table, and flow {flow.name!r} has {len(found)}",
            fix=f"say which with --topic: {', '.join(each.topic for each in found)}",
        )
    if not found:
        raise ConfigError(
            f"no table of flow {flow.name!r} was published so far",
            fix=f"start `tailrace capture {flow.source}` first",
        )
    (subject,) = found
    if not subject.record.key_columns:
        raise ConfigError(
            f"{subject.record.schema}.{subject.record.table} has no key, so that nothing proves the rebuilt"
            " table",
            where=f"flow {flow.name!r}",
            fix=f"give it a key in the source; or, to have it copied anew, {reset_steps(flow.source)}",
        )
    return subject


def names_of(config: Config, flow: Flow, subject: Subject, into: str) -> Names:
    """Raises ConfigError."""
    record = subject.record
    schema, live = flow.place(record.schema, record.table)
    given, _, name = into.rpartition(".")
    where = f"--into {into!r}"
    old = fitting(live, OLD)
    fits = bool(_NAME(name)) and len(name.encode()) <= NAME_BYTES and name not in (live, old)
    if given not in ("", schema):
        raise ConfigError(
            f"the new table stands beside {schema}.{live}, in the same schema",
            where=where,
            fix=f"write {name if fits else fitting(live, '_new')}",
        )
    if not fits:
        raise ConfigError(
            f"it is no name for a table beside {schema}.{live}",
            where=where,
            fix=f"write another one, of up to {NAME_BYTES} bytes, such as {fitting(live, '_new')}",
        )
    for other in config.flows.values():
        if other.target != flow.target or other is flow or (other.table_schema or schema) != schema:
            continue
        if fnmatchcase(live, other.table or other.source_pattern.rpartition(".")[2]):
            raise ConfigError(
                f"flow {other.name!r} writes to {schema}.{live}, too, or may",
                where=where,
                fix="replay without --into: rows that are newer stay as they are",
            )
    shadow = f"{flow.name} into {schema}.{name}"  # no name of the config has a space
    return Names(flow.name, shadow, (subject.topic,), schema, live, name, old)


def rebuilding_of(
    config: Config, flow: Flow, subject: Subject, names: Names, types: Mapping[str, str]
) -> tuple[Rebuilding, set[str]]:
    """And the columns that the flow writes. `types`: of the live table's columns. Raises ConfigError."""
    record = subject.record
    place = record.table if isinstance(config.sources[flow.source], RedisSource) else None
    pattern = f"{flow.source}.{place or f'{record.schema}.{record.table}'}"
    to = f"{flow.target}.{names.schema}.{names.into}"
    changes = {"name": names.flow, "source_pattern": pattern, "to": to}
    shadow = flow.model_copy(update=changes)
    mapping = map_columns(flow, record, types)
    sent = {column.name for column in mapping.columns}
    sent |= {soft} if (soft := soft_column(flow)) else set()
    sent |= set(VERSION_COLUMNS) if flow.version == "columns" else set()
    key = [KeyColumn(c.name, c.column.name, types[c.name]) for c in mapping.columns if c.key and c.column]
    return Rebuilding(flow, shadow, record, names, key), sent


async def check_log(
    flow: Flow,
    subject: Subject,
    spans: Sequence[Span],
    runs: Collection[Run],
    consumer: AIOKafkaConsumer,
    brokers: str,
) -> None:
    """Raises ConfigError where rows may be missing in what would be replayed, with what brings them."""
    short = [span for span in spans if span.begin > 0]
    if not short:
        return
    record = subject.record
    table = subject.topic.partition(".")[2]
    whole = [
        run.progress.began_us
        for run in runs
        if run.request is not None
        and run.progress is not None
        and (run.progress.state, run.request.keyed, run.request.where) == (State.DONE, False, None)
        and run.request.place in (spelt(record.schema, record.table), record.table)
    ]
    for span in short:
        first_us = await _first_us(consumer, brokers, span)
        if first_us is None or not any(first_us <= began_us for began_us in whole):
            raise ConfigError(
                f"what would be replayed of {span.place.topic}[{span.place.partition}] begins at offset"
                f" {span.begin} (the log at {span.log_start}): rows that were last written before would be"
                " missing in the rebuilt table",
                where=f"flow {flow.name!r}",
                fix=f"`tailrace backfill {flow.source} {quote(table)}` publishes every row as it is now; when"
                " it is done and applied, run this again with --from-start",
            )
    if soft_column(flow):
        raise ConfigError(
            f"delete: {flow.delete} keeps rows that the source has no more, and the log does not reach back"
            " to all of them",
            where=f"flow {flow.name!r}",
            fix="replay without --into: rows that are newer stay as they are",
        )


async def _first_us(consumer: AIOKafkaConsumer, brokers: str, span: Span) -> int | None:
    """When the first record of it was published."""
    begin, until = {span.partition: span.begin}, {span.partition: span.end}
    async with aclosing(read(consumer, brokers, begin, until, number=1)) as batches:
        async for batch in batches:
            for record in batch:
                return int(record.timestamp) * 1000
    return None
