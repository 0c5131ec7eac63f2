"""`tailrace replay FLOW --into TABLE`: a table rebuilt beside the live one, proved, and exchanged with it."""

from __future__ import annotations

import sys
import time
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer
import uvloop

from consumers.apply.checkpoint import cluster_replaced
from consumers.apply.pauses import paused_in, written_at_once
from consumers.asker import operator
from consumers.commands.backfill_tables import read_records
from consumers.commands.parked import opened
from consumers.rebuild_plan import check_flow, subject_of
from consumers.rebuild_run import Asked, Rebuilt, lines_of, rebuild
from consumers.reconcile.cells import KEPT
from consumers.reconcile.fence import STALL_S
from consumers.replay import Asked as Places
from consumers.replay import plan, refuse_taken, reset_of, topics_of
from streamer.cli import print_json
from streamer.commands.brokers import with_brokers
from streamer.config import Config, Flow
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, ConfigError
from streamer.kafka import admin, kafka_errors, reader
from streamer.publisher.topics import describe

if TYPE_CHECKING:
    from consumers.commands.replay import Wish

TELL_S = 2.0  # between two words on how far it is
SHOWN = 5  # keys that differ

_EXITS = {
    "planned": EXIT_OK,
    "swapped": EXIT_OK,
    "done_before": EXIT_OK,
    "different": EXIT_FINDING,
    "unproved": EXIT_INCOMPLETE,
}


def rebuild_into(
    config: Config, flow: Flow, wish: Wish, places: Places, *, as_json: bool, stall_s: float = STALL_S
) -> int:
    """The exit code: 1 when the rebuilt table differs from the source, 3 when that could not be seen."""
    _check(wish, places)
    begin = f"{places.from_.kind} {places.from_.value}"
    asked = Asked(wish.into, wish.drop_old, wish.dry_run, begin, operator(), stall_s)
    found = uvloop.run(_rebuild(with_brokers(config), flow, places, asked))
    if as_json:
        print_json(_plain(flow, found, dry_run=wish.dry_run))
    else:
        _tell(flow, found, dry_run=wish.dry_run)
    return _EXITS[found.state]


def _check(wish: Wish, places: Places) -> None:
    given = {
        "an end": places.to is not None,
        "keys": bool(wish.keys or wish.key_file),
        "--partition": places.partition is not None,
    }
    for name, there in given.items():
        if there:
            raise ConfigError(
                f"--into rebuilds a whole table, up to where the live one is, and {name} is given, too",
                fix="leave it out; or replay those events into the live table, without --into",
            )


async def _rebuild(config: Config, flow: Flow, places: Places, asked: Asked) -> Rebuilt:
    check_flow(config, flow)
    brokers, security = config.kafka.brokers, config.kafka.security
    async with admin(brokers, security) as client:
        topics = topics_of(flow, await describe(client), places.topics)
        with kafka_errors("asking for the cluster's id", brokers=brokers):
            cluster_id = str((await client.describe_cluster())["cluster_id"])
    records = await read_records(config, brokers, flow.source)
    subject = subject_of(flow, topics, records)
    async with (
        opened(config, flow.target, flow.name) as target,
        reader(brokers, security, committed=True) as consumer,
    ):
        of_one = {subject.topic: topics[subject.topic]}
        pause = paused_in(await target.gates(), flow.name)
        if pause is not None and not asked.dry_run:
            raise written_at_once(pause)
        spans = await plan(consumer, brokers, target, flow, of_one, places)
        for span in spans:
            stand = span.checkpoint
            if stand.last is not None and stand.cluster_id not in (None, cluster_id):
                raise cluster_replaced(stand, cluster_id, reset_of(config, flow))
        refuse_taken(config, flow, spans)
        return await rebuild(
            config, flow, subject, spans, target, consumer, cluster_id, asked, _teller(asked.dry_run)
        )


def _teller(quiet: bool) -> Any:
    told_s = 0.0

    def tell(words: str) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if not quiet and sys.stderr.isatty() and now_s - told_s > TELL_S:
            told_s = now_s
            typer.echo(words, err=True)

    return tell


# What is said


def _plain(flow: Flow, found: Rebuilt, *, dry_run: bool) -> dict[str, Any]:
    names, proof = found.names, found.proof
    return {
        "flow": flow.name,
        "target": flow.target,
        "dry_run": dry_run,
        "state": found.state,
        "table": f"{names.schema}.{names.live}",
        "into": f"{names.schema}.{names.into}",
        "old": f"{names.schema}.{found.kept}" if found.kept else None,
        "drop": found.drop_sql or None,
        "went_on": found.went_on,
        "events": found.events,
        "carried": found.carried,
        "partitions": [
            {
                "topic": span.place.topic,
                "partition": span.place.partition,
                "log_start": span.log_start,
                "checkpoint": span.checkpoint.next_offset,
                "from_offset": span.begin,
                "to_offset": span.end,
            }
            for span in found.spans
        ],
        "proof": None if proof is None else proof.plain(KEPT),
        "grants": found.grants,
    }


def _tell(flow: Flow, found: Rebuilt, *, dry_run: bool) -> None:
    names = found.names
    live, into = f"{names.schema}.{names.live}", f"{names.schema}.{names.into}"
    again = f"`tailrace replay {flow.name} --into {names.into} ...` goes on where it is"
    if found.state == "done_before":
        typer.echo(
            f"{live} was exchanged with a rebuilt table at {found.since} UTC; the old one is"
            f" {names.schema}.{found.kept}. To rebuild it once more: {found.drop_sql}"
        )
        return
    if dry_run:
        for line in lines_of(found.spans):
            typer.echo(line)
        typer.echo(
            f"{into} would be {'gone on with' if found.went_on else 'made'} in the likeness of {live}, filled"
            " from there up to the live table's checkpoints, compared with the source and, only if it is"
            f" equal, exchanged with {live} in one transaction"
        )
        return
    proof = found.proof
    assert proof is not None
    counts = proof.counts
    if found.state == "swapped":
        typer.echo(
            f"{live} is the rebuilt table now: {proof.target_rows:,} rows of {found.events:,} events, equal"
            " to the source"
        )
        if counts.in_flight:
            typer.echo(f"{counts.in_flight:,} rows changed all the time, and could not be judged meanwhile")
        if found.kept:
            typer.echo(f"the old table is kept as {names.schema}.{found.kept}: {found.drop_sql}")
        if found.carried:
            typer.echo(f"{found.carried:,} rows were taken from the old table: their keys are or were parked")
        for statement in found.grants:
            typer.echo(f"this role could not: {statement}")
    elif found.state == "different":
        typer.echo(
            f"{into} differs from the source, and nothing was exchanged: {counts.missing:,} rows missing,"
            f" {counts.extra:,} extra, {counts.different:,} different"
        )
        for sample in [s for s in proof.samples if s.kind in ("missing", "extra", "different")][:SHOWN]:
            columns = f": {', '.join(sample.columns)}" if sample.columns else ""
            typer.echo(f"  {sample.kind} {', '.join(sample.key)}{columns}")
        typer.echo(
            f"what the log lacks comes with `tailrace backfill {flow.source} {quote(proof.source)}`;"
            f" then {again}"
        )
    else:
        typer.echo(f"{into} could not be proved, and nothing was exchanged: {proof.reason}")
        typer.echo(again)
