"""`tailrace replay FLOW`: go back in the log, all of it from there on, or some of it once more.

Without an end and without keys the checkpoints are set back, and the flow's apply processes do the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import typer
import uvloop
from aiokafka import AIOKafkaConsumer

from consumers.apply.checkpoint import Checkpoint, Place, cluster_replaced
from consumers.apply.pauses import Pause, paused_in, written_at_once
from consumers.apply.schemas import Schemas
from consumers.asker import operator
from consumers.bounds import Bound, Kind, parse_time
from consumers.commands.backfill_tables import read_records
from consumers.commands.parked import opened
from consumers.commands.rebuild import rebuild_into
from consumers.key_file import Written, key_columns, key_of_some, written_in
from consumers.keys import WantedKeys
from consumers.replay import (
    Asked,
    Span,
    check_flow,
    keyless,
    plan,
    records_of,
    refuse_taken,
    reset_of,
    rewinds_of,
    topics_of,
)
from consumers.replay_pass import Pass, Tally
from consumers.targets.base import Target
from streamer.changes.lsn import parse_lsn
from streamer.changes.schema import SchemaRecord
from streamer.cli import print_json
from streamer.commands.brokers import with_brokers
from streamer.config import Config, Flow, MemoryTarget, PostgresSource, load
from streamer.config.base import no_such
from streamer.config.built import unbuilt_flow
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.kafka import admin, kafka_errors, reader
from streamer.publisher.topics import describe

TELL_S = 2.0  # between two words on how far it is
KEYS_LIMIT = 100_000  # in memory; more are a range of the log, or all of it


@dataclass(frozen=True, slots=True)
class Wish:
    """The command's options as they were given."""

    flow: str
    from_offset: int | None = None
    from_time: str = ""
    from_lsn: str = ""
    from_start: bool = False
    to_offset: int | None = None
    to_time: str = ""
    to_lsn: str = ""
    topics: Sequence[str] = ()
    partition: int | None = None
    keys: Sequence[str] = ()
    key_file: str = ""
    dry_run: bool = False
    into: str = ""
    drop_old: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """`moved`: checkpoints as they were. `tally` None: nothing was read. `keyless`: topics left out."""

    spans: Sequence[Span]
    moved: Mapping[Place, Checkpoint]
    tally: Tally | None
    keyless: Sequence[str]
    keys: WantedKeys | None
    pause: Pause | None = None


def replay(path: Path, wish: Wish, *, as_json: bool) -> int:
    """The exit code: 1 when there is nothing to replay, or rows were refused."""
    config = load(path)
    flow = _flow(config, wish.flow)
    keys = _keys(wish)
    asked = Asked(*_bounds(config, flow, wish), wish.topics, wish.partition)
    if wish.into:
        return rebuild_into(config, flow, wish, asked, as_json=as_json)
    if wish.drop_old:
        raise ConfigError("--drop-old is about the table that --into replaces", fix="name one with --into")
    done = uvloop.run(_replay(with_brokers(config), flow, asked, keys, wish))
    if as_json:
        print_json(_plain(flow, wish, done))
    else:
        _tell(flow, wish, done)
    refused = done.tally is not None and done.tally.refused > 0
    nothing = all(span.is_empty for span in done.spans) or _met_no_key(done)
    return EXIT_FINDING if refused or nothing else EXIT_OK


def _met_no_key(done: Done) -> bool:
    return done.keys is not None and done.tally is not None and not sum(done.tally.events.values())


def _flow(config: Config, name: str) -> Flow:
    flow = config.flows.get(name)
    if flow is None:
        raise no_such("flow", name, config.flows, config.path)
    for unbuilt in unbuilt_flow(config, flow):
        raise unbuilt.error()
    if isinstance(config.targets.get(flow.target), MemoryTarget):
        raise ConfigError(
            f"the target {flow.target!r} is in the memory of the process that applies, out of reach",
            where=str(config.path),
            fix="start that process again: it begins at the start of the topics",
        )
    return flow


def _bounds(config: Config, flow: Flow, wish: Wish) -> tuple[Bound, Bound | None]:
    begins = _given(config, flow, "from", wish.from_offset, wish.from_time, wish.from_lsn)
    begins += [Bound(Kind.START)] if wish.from_start else []
    if len(begins) != 1:
        raise ConfigError(
            "a replay begins at one place" if begins else "where is the replay to begin?",
            fix="give one of --from-offset N, --from-time T, --from-lsn X/Y and --from-start",
        )
    ends = _given(config, flow, "to", wish.to_offset, wish.to_time, wish.to_lsn)
    if len(ends) > 1:
        raise ConfigError(
            "a replay ends at one place", fix="give one of --to-offset N, --to-time T and --to-lsn X/Y"
        )
    return begins[0], ends[0] if ends else None


def _given(config: Config, flow: Flow, side: str, offset: int | None, at: str, lsn: str) -> list[Bound]:
    found = []
    if offset is not None:
        found.append(Bound(Kind.OFFSET, offset))
    if at:
        now_ms = time.time_ns() // 1_000_000
        found.append(Bound(Kind.TIME, parse_time(at, f"--{side}-time", now_ms)))
    if lsn:
        if not isinstance(config.sources.get(flow.source), PostgresSource):
            raise ConfigError(
                f"--{side}-lsn: the source {flow.source!r} has no LSNs", fix=f"use --{side}-time"
            )
        found.append(Bound(Kind.LSN, parse_lsn(lsn)))
    return found


def _keys(wish: Wish) -> list[Written]:
    if "" in wish.keys:
        raise ConfigError(
            "-k is empty, and without it the whole flow would go back",
            where="tailrace replay",
            fix='write the key: 7, or \'{"id":7}\'; of a text that is empty \'{"name":""}\'',
        )
    given = [Written("-k", text) for text in wish.keys]
    if wish.key_file:
        listed = list(islice(written_in(wish.key_file), KEYS_LIMIT + 1))
        if not listed:
            raise ConfigError("the file of keys has none", where=wish.key_file, fix="write one key a line")
        given += listed
    if len(given) > KEYS_LIMIT:
        raise ConfigError(
            f"more than {KEYS_LIMIT:,} keys are too many to look for",
            fix="replay without them: rows that are newer stay as they are",
        )
    return given


def _wanted(flow: Flow, given: Sequence[Written], records: Mapping[str, SchemaRecord]) -> WantedKeys | None:
    """`records`: of the topics that are replayed. Raises ConfigError for a key that is one of none."""
    if not given:
        return None
    if not records:
        raise ConfigError(
            f"no table of flow {flow.name!r} was published so far, so that no key is known",
            fix=f"start `tailrace capture {flow.source}` first",
        )
    tables = {topic: key_columns(record) for topic, record in records.items()}
    found = []
    for written in given:
        keys = key_of_some(written, tables)
        found.append({t: dict(zip([c.name for c in tables[t]], key, strict=True)) for t, key in keys.items()})
    return WantedKeys(found)


async def _replay(config: Config, flow: Flow, asked: Asked, given: Sequence[Written], wish: Wish) -> Done:
    brokers, security = config.kafka.brokers, config.kafka.security
    check_flow(flow)
    async with admin(brokers, security) as client:
        topics = topics_of(flow, await describe(client), asked.topics)
        with kafka_errors("asking for the cluster's id", brokers=brokers):
            cluster_id = str((await client.describe_cluster())["cluster_id"])
    records = records_of((await read_records(config, brokers, flow.source)).values(), topics)
    left_out = keyless(flow, records, topics, asked.topics)
    for topic in left_out:
        del topics[topic], records[topic]
    keys = _wanted(flow, given, records)
    async with (
        opened(config, flow.target, flow.name) as target,
        reader(brokers, security, committed=True) as consumer,
    ):
        pause = paused_in(await target.gates(), flow.name)
        if pause is not None and not wish.dry_run and (asked.to is not None or keys is not None):
            raise written_at_once(pause)
        spans = await plan(consumer, brokers, target, flow, topics, asked)
        for span in spans:
            stand = span.checkpoint
            if stand.last is not None and stand.cluster_id not in (None, cluster_id):
                raise cluster_replaced(stand, cluster_id, reset_of(config, flow))
        if wish.dry_run or asked.to is not None or keys is not None:
            if not wish.dry_run:
                refuse_taken(config, flow, spans)
            tally = await _pass(config, flow, target, consumer, cluster_id, keys, spans, wish)
            return Done(spans, {}, tally, left_out, keys)
        refuse_taken(config, flow, spans)
        moved = await target.rewind(await rewinds_of(consumer, brokers, spans), operator())
        return Done(spans, moved, None, left_out, keys, pause)


async def _pass(
    config: Config,
    flow: Flow,
    target: Target,
    consumer: AIOKafkaConsumer,
    cluster_id: str,
    keys: WantedKeys | None,
    spans: Sequence[Span],
    wish: Wish,
) -> Tally:
    told_s = time.monotonic()
    total = sum(max(0, span.end - span.begin) for span in spans)

    def tell(tally: Tally) -> None:
        nonlocal told_s
        if sys.stderr.isatty() and time.monotonic() - told_s > TELL_S:
            told_s = time.monotonic()
            typer.echo(f"{sum(tally.events.values()):,} events so far, of {total:,} offsets", err=True)

    schemas = Schemas(config.kafka.brokers, config.kafka.security, config.name)
    await schemas.open()
    try:
        work = Pass(config, flow, target, consumer, schemas, cluster_id, keys)
        return await (work.foretell(spans, tell) if wish.dry_run else work.write(spans, tell))
    finally:
        await schemas.close()


# What is said


def _plain(flow: Flow, wish: Wish, done: Done) -> dict[str, Any]:
    return {
        "flow": flow.name,
        "target": flow.target,
        "dry_run": wish.dry_run,
        "checkpoints_moved": len(done.moved),
        "left_out": list(done.keyless),
        "partitions": [
            {
                "topic": span.place.topic,
                "partition": span.place.partition,
                "log_start": span.log_start,
                "checkpoint": span.checkpoint.next_offset,
                "from_offset": span.begin,
                "to_offset": span.end,
                "events": None if done.tally is None else done.tally.events.get(span.place),
                "taken_by_retention": span.taken or None,
            }
            for span in done.spans
        ],
        **({} if done.tally is None else {"counts": done.tally.plain()}),
    }


def _tell(flow: Flow, wish: Wish, done: Done) -> None:
    for span in done.spans:
        _tell_span(span, done)
    for topic in done.keyless:
        typer.echo(f"{topic}: left out, as the table has no key, and a replay would add its rows again")
    for span in done.spans:
        if span.taken:
            typer.echo(f"retention has removed a part of what was asked: the log of {span.taken}")
    if all(span.is_empty for span in done.spans):
        typer.echo(f"nothing to replay: flow {flow.name} has applied nothing between these places")
    elif done.tally is not None:
        _tell_tally(flow, done.tally, done.keys, dry_run=wish.dry_run)
    elif done.pause is not None:
        typer.echo(
            f"flow {flow.name} goes back in {len(done.moved)} partitions, and waits there: it was paused"
            f" {done.pause.text}. `tailrace resume {flow.name}` has it go on"
        )
    else:
        typer.echo(
            f"flow {flow.name} goes back in {len(done.moved)} partitions. Its apply processes go on from"
            " there by themselves within seconds, and rows that are newer stay as they are:"
            " `tailrace lag --watch`"
        )
    starts = sorted({span.place.topic for span in done.spans if span.log_start})
    if wish.from_start and starts:
        tables = " ".join(topic.partition(".")[2] for topic in starts)
        typer.echo(
            f"the log begins after offset 0: rows that were written last before it come with"
            f" `tailrace backfill {flow.source} {tables}`"
        )


def _tell_span(span: Span, done: Done) -> None:
    name = f"{span.place.topic}[{span.place.partition}]"
    at = f"checkpoint {span.checkpoint.next_offset}, log from {span.log_start}"
    if span.is_empty:
        typer.echo(f"{name}: nothing ({at})")
        return
    events = "" if done.tally is None else f", {done.tally.events.get(span.place, 0):,} events"
    typer.echo(f"{name}: offsets {span.begin} to {span.end - 1}{events} ({at})")


def _tell_tally(flow: Flow, tally: Tally, keys: WantedKeys | None, *, dry_run: bool) -> None:
    if keys is not None and not sum(tally.events.values()):
        typer.echo(
            f"no event between these places has one of the {len(keys):,} keys\n  -> a key is written as it is"
            f' in the topic, 7 or {{"id":7}}: see `tailrace tail {flow.source_pattern}`'
        )
        return
    of = "" if keys is None else f" of {len(keys):,} keys"
    events = sum(tally.events.values())
    if dry_run and tally.newer is None:
        typer.echo(
            f"{events:,} events{of} would be read, {tally.writes:,} writes; what of them would change a row"
            f" cannot be told of {flow.target} beforehand. Newer rows would stay as they are"
        )
    elif dry_run:
        typer.echo(
            f"{events:,} events{of} would be read, {tally.writes:,} writes: {tally.newer:,} would change"
            f" {tally.rows:,} rows, {tally.same:,} are in the target at that version already,"
            f" {tally.older:,} are older than the target's rows, which would stay"
        )
    else:
        typer.echo(
            f"{events:,} events{of} read, {tally.writes - tally.refused:,} writes sent, of which"
            f" {tally.older:,} were older than the target's rows, which stay; no checkpoint has moved"
        )
    if tally.truncates:
        typer.echo(f"{tally.truncates:,} truncates or floors among them: they were applied, and hold")
    if tally.parked:
        typer.echo(f"{tally.parked:,} changes left out, as their keys are parked: tailrace dead-letters list")
    if tally.undecodable:
        typer.echo(f"{tally.undecodable:,} records left out, as they are no change events")
    if tally.refused:
        typer.echo(
            f"{tally.refused:,} rows were refused by the target, and left out: {'; '.join(tally.samples)}"
        )
