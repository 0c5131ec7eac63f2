"""The command `tailrace`: mounts the commands of both packages. No command's work is here.

Each command imports its work when it runs: see `streamer.cli`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from consumers import cli_config as overrides
from consumers import cli_control as control_side
from consumers import cli_process as process_side
from consumers.commands.dead_letters import app as dead_letters
from consumers.demo.command import demo
from streamer import DEFAULT_PATH, __version__
from streamer import cli as capture_side
from streamer.cli import die_with, run_command, set_up_log, start_part
from streamer.options import (
    ConfigOption,
    FlowArgument,
    FlowOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    MetricsOption,
    ParentOption,
    RestartsOption,
    RunArgument,
    SourceArgument,
    TargetArgument,
    WatchOption,
)
from streamer.output import make_patient

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Copies changes of Postgres through Kafka to target stores, exactly once in effect.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tailrace {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(short_help="Run everything of the config file, and keep it running.")
def run(
    config: ConfigOption = DEFAULT_PATH,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Processors' state in memory where RocksDB is not installed.")
    ] = False,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
) -> None:
    """Run everything of the config file: a process for each source, processor and target, started again when
    it falls.

    --json prints a line for every change of a part's or a flow's state. Ctrl-C or SIGTERM stops it all.
    """
    start_part(0)
    set_up_log(log_format, log_level)
    from consumers.commands import run as work  # noqa: PLC0415

    work.run(
        config,
        as_json=as_json,
        metrics_port=metrics_port,
        log_format=log_format,
        log_level=log_level,
        memory=yes,
    )


@app.command(short_help="What runs, how far it is, and what is wrong, worst first.")
def status(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show what runs, how far it is, and what is wrong, worst first. Exits 1 when something is wrong."""
    set_up_log(log_format, log_level)
    from consumers.commands import show as work  # noqa: PLC0415

    raise typer.Exit(work.status(config, as_json=as_json, watch=watch))


@app.command(short_help="Lag of each flow and partition, and where the time goes.")
def lag(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the lag of each flow and partition: records, seconds, and where the time goes."""
    set_up_log(log_format, log_level)
    from consumers.commands import show as work  # noqa: PLC0415

    raise typer.Exit(work.lag(config, as_json=as_json, watch=watch))


@app.command(short_help="Copy what is in Kafka into one target, until stopped.")
def apply(
    target: TargetArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Copy what is in Kafka into one target, until stopped. Several of one target share the work."""
    start_part(parent)
    set_up_log(log_format, log_level)
    from consumers.commands import apply as work  # noqa: PLC0415

    work.apply(config, target, metrics_port=metrics_port, restarts=restarts)


@app.command()
def approve(
    flow: FlowArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Let a held truncate or held deletes of a flow pass. Exits 1 when it holds nothing."""
    set_up_log(log_format, log_level)
    from consumers.commands import gates as work  # noqa: PLC0415

    raise typer.Exit(work.decide(config, flow, "approved", as_json=as_json))


@app.command(short_help="Drop a held truncate or held deletes of a flow.")
def refuse(
    flow: FlowArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Drop a held truncate or held deletes of a flow, with a record. Exits 1 when it holds nothing."""
    set_up_log(log_format, log_level)
    from consumers.commands import gates as work  # noqa: PLC0415

    raise typer.Exit(work.decide(config, flow, "refused", as_json=as_json))


@app.command(short_help="Publish rows of a source again while it streams.")
def backfill(
    source: SourceArgument,
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables or entities of it: public.orders.", metavar="TABLE"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of its tables that have a key.")] = False,
    where: Annotated[
        str, typer.Option("--where", help="Only rows of this condition, in the source's SQL.", metavar="SQL")
    ] = "",
    keys: Annotated[
        str,
        typer.Option(
            "--keys", help="Only these keys, one a line, JSON or plain; - is stdin.", metavar="FILE"
        ),
    ] = "",
    rate: Annotated[str, typer.Option("--rate", help="At most so many rows a second.", metavar="N/s")] = "",
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Delete of these keys what the source lacks.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Ask for it, and do not wait.")] = False,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Publish rows of a source again, beside the stream and without stopping it; follow that to its end.

    Ctrl-C leaves it running. Exits 0 when all is published (or asked for, with --detach), 1 when a run was
    cancelled or failed, 3 when it was left running.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import backfill as work  # noqa: PLC0415

    wanted = work.Wish(source, tables or [], every, where, keys, rate, delete_missing, detach)
    raise typer.Exit(work.backfill(config, wanted, as_json=as_json))


@app.command(short_help="Backfills: list, pause, resume or cancel them.")
def backfills(
    action: Annotated[str, typer.Argument(help="list, pause, resume or cancel.", metavar="ACTION")] = "list",
    run: RunArgument = "",
    source: Annotated[str, typer.Option("--source", help="List those of this one.", metavar="SOURCE")] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """List the backfills of the last week; or have one wait, go on where it was, or end.

    What a cancelled one has published stays. A paused or a failed one can be resumed. Exits 1 when the run
    is over already, 3 when no capture answers.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import backfill_runs as work  # noqa: PLC0415

    raise typer.Exit(work.act(config, action, run, source=source, as_json=as_json))


@app.command(short_help="Prove that targets equal their sources, row by row.")
def reconcile(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Jobs or flows of the file, all flows if none is named; or `history`.", metavar="JOB|FLOW"
        ),
    ] = None,
    threshold: Annotated[
        str, typer.Option("--threshold", help="Drift up to this share is none.", metavar="SHARE")
    ] = "",
    where: Annotated[
        str,
        typer.Option("--where", help="Only rows of this condition, in the source's names.", metavar="SQL"),
    ] = "",
    columns: Annotated[
        str, typer.Option("--columns", help="Only these columns, and the key.", metavar="A,B")
    ] = "",
    limit_rate: Annotated[
        str, typer.Option("--limit-rate", help="At most so many rows a second.", metavar="N/s")
    ] = "",
    max_lag: Annotated[
        str,
        typer.Option("--max-lag", help="Wait while the flow is further behind than this.", metavar="TIME"),
    ] = "",
    group: Annotated[
        str, typer.Option("--group", help="Count rows by these columns.", metavar="COLUMN[,COLUMN]")
    ] = "",
    window: Annotated[
        list[str] | None,
        typer.Option("--window", help="Count those of the last 7d; may be given again.", metavar="SIZE"),
    ] = None,
    window_column: Annotated[
        str, typer.Option("--window-column", help="The time that windows are of.", metavar="COLUMN")
    ] = "",
    wait: Annotated[
        str,
        typer.Option(
            "--wait", help="How long capture or apply may stand still at the fence (60s).", metavar="TIME"
        ),
    ] = "",
    log: Annotated[str, typer.Option("--log", help="Append a line a job.", metavar="FILE")] = "",
    values: Annotated[bool, typer.Option("--values", help="Show the values that differ.")] = False,
    samples: Annotated[
        int, typer.Option("--samples", min=0, max=100_000, help="Rows of each kind that are named.")
    ] = 10,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do not go on with a run that was broken off.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Publish rows that differ again, and compare them once more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what --repair would do, and do nothing.")
    ] = False,
    delete_extra: Annotated[
        bool, typer.Option("--delete-extra", help="Repair rows that only the target has: delete them.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="Repair nothing of a job with more rows (100000).", metavar="N"),
    ] = None,
    refuse_above: Annotated[
        str,
        typer.Option(
            "--refuse-above", help="Repair nothing of a table with more drift (20%).", metavar="SHARE"
        ),
    ] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
    parent: ParentOption = 0,
) -> None:
    """Compare targets with their sources and say what is missing, extra or different, and never what is only
    on its way.

    Exits 0 when the drift is within the threshold, 1 when it is not, 2 on an error, 3 when something could
    not be compared to the end, 4 when all drift was repaired and verified.
    """
    die_with(parent)
    set_up_log(log_format, log_level)
    from consumers.commands import reconcile as work  # noqa: PLC0415

    wish = work.Wish(
        names or [],
        threshold,
        where,
        columns,
        limit_rate,
        wait,
        log,
        values,
        samples,
        fresh,
        repair=repair,
        dry_run=dry_run,
        delete_extra=delete_extra,
        limit=limit,
        refuse_above=refuse_above,
        group=group,
        window=window or (),
        window_column=window_column,
        max_lag=max_lag,
    )
    raise typer.Exit(work.reconcile(config, wish, as_json=as_json))


@app.command(short_help="Go on with a target whose store was emptied or replaced.")
def adopt(
    target: TargetArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Say that the store as it is now is the target's, though it was emptied, replaced or made again while
    nothing applied. Its next `tailrace apply` fills it from Kafka.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import adopt as work  # noqa: PLC0415

    raise typer.Exit(work.adopt(config, target, as_json=as_json))


@app.command(short_help="The nearest rows of a pgvector target.")
def search(
    target: Annotated[
        str, typer.Argument(help="A name below `targets:`, of kind pgvector.", metavar="TARGET")
    ],
    words: Annotated[str, typer.Argument(help="What to look for, in any words.", metavar="WORDS")],
    flow: FlowOption = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many rows.")] = 10,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the rows whose text is nearest in meaning, nearest first. Exits 1 when there is none."""
    set_up_log(log_format, log_level)
    from consumers.commands import search as work  # noqa: PLC0415

    raise typer.Exit(work.show(config, target, words, flow=flow, limit=limit, as_json=as_json))


@app.command(short_help="Go back in the log, and apply it from there again.")
def replay(
    flow: FlowArgument,
    from_offset: Annotated[
        int | None, typer.Option("--from-offset", min=0, help="Of one partition.", metavar="N")
    ] = None,
    from_time: Annotated[
        str, typer.Option("--from-time", help="Of publishing; or how long ago: 10m, 2h.", metavar="T")
    ] = "",
    from_lsn: Annotated[
        str, typer.Option("--from-lsn", help="Of a commit, of a Postgres source.", metavar="X/Y")
    ] = "",
    from_start: Annotated[bool, typer.Option("--from-start", help="All that the log has.")] = False,
    to_offset: Annotated[
        int | None, typer.Option("--to-offset", min=0, help="Only what is before it.", metavar="N")
    ] = None,
    to_time: Annotated[str, typer.Option("--to-time", help="Only what is before it.", metavar="T")] = "",
    to_lsn: Annotated[str, typer.Option("--to-lsn", help="Only what is before it.", metavar="X/Y")] = "",
    key: Annotated[
        list[str] | None, typer.Option("--key", "-k", help="Only this key; may be given again.")
    ] = None,
    keys: Annotated[
        str, typer.Option("--keys", help="Only these, one a line; - is stdin.", metavar="FILE")
    ] = "",
    topic: Annotated[
        list[str] | None, typer.Option("--topic", help="Only this one of the flow's; may be given again.")
    ] = None,
    partition: Annotated[int | None, typer.Option("--partition", "-p", min=0, help="This one only.")] = None,
    into: Annotated[
        str,
        typer.Option("--into", help="Rebuild the table under this name, then swap the two.", metavar="TABLE"),
    ] = "",
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="With --into: the old table goes; else it is kept.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Set a flow back in its target: its apply processes go on from there by themselves.

    No row goes back in time: one that is newer in the target stays, and what was deleted stays deleted. With
    an end or with keys only those events are applied once more, by this command, and the flow goes on where
    it is. Exits 1 when there is nothing to replay or a row was refused, 64 when the log does not reach back
    that far. With --into a table is rebuilt beside the live one, compared with the source and swapped with it
    in one transaction: exits 1 when it differs, 3 when that could not be seen; then nothing is swapped.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import replay as work  # noqa: PLC0415

    begin = from_offset, from_time, from_lsn, from_start
    end = to_offset, to_time, to_lsn
    wish = work.Wish(flow, *begin, *end, topic or (), partition, key or (), keys, dry_run, into, drop_old)
    raise typer.Exit(work.replay(config, wish, as_json=as_json))


@app.command(short_help="Look into a topic: its last changes, or those of one key.")
def tail(
    topic: Annotated[
        str,
        typer.Argument(help="A topic in Kafka, also one of ours: __positions, __status.", metavar="TOPIC"),
    ],
    key: Annotated[
        str, typer.Option("--key", "-k", help="This key only: '{\"id\":7}', or 7 where it has one column.")
    ] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="start, end, an offset, a time or how long ago (10m); else the last 10.",
            metavar="AT",
        ),
    ] = "",
    to: Annotated[str, typer.Option("--to", help="As --from: what is before it.", metavar="AT")] = "",
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="At most so many.")] = None,
    partition: Annotated[int | None, typer.Option("--partition", "-p", min=0, help="This one only.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="line, json (one a line) or raw (values alone).", metavar="FORMAT")
    ] = "line",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show committed records of a topic: when published, partition and offset, op, key, version, row.

    Times are UTC. A version is the epoch, the commit's LSN and the place in its transaction.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import tail as work  # noqa: PLC0415

    code = work.show(
        config,
        topic,
        key=key,
        from_=from_,
        to=to,
        number=number,
        partition=partition,
        follow=follow,
        format_="json" if as_json else format_,
    )
    raise typer.Exit(code)


app.command(short_help="A shop, the real pipeline, two kills, a verdict.")(demo)
app.add_typer(
    dead_letters,
    name="dead-letters",
    short_help="Rows that a target or a processor refused: list, show, retry, discard.",
)
app.add_typer(overrides.app, name="config", short_help="Schedules that were changed beside the file.")
app.add_typer(control_side.app)
app.add_typer(process_side.app)
app.add_typer(capture_side.app)


def main() -> None:
    make_patient()
    sys.exit(run_command(app))
