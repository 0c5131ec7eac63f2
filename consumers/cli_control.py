"""The commands of the control plane: paused flows, the scheduler, jobs, alerts. No command's work is here."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer import DEFAULT_PATH
from streamer.cli import set_up_log, start_part
from streamer.options import (
    ConfigOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    MetricsOption,
    ParentOption,
    RestartsOption,
)

app = typer.Typer()

FlowsArgument = Annotated[list[str], typer.Argument(help="Flows of the file.", metavar="FLOW")]
JobArgument = Annotated[str, typer.Argument(help="A job of `schedules:`.", metavar="JOB")]


@app.command(short_help="The page, the API and the watchdog; the jobs of the file at their times.")
def serve(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Show the page and its API (`control.http`), watch, and run the jobs of the file at their times, until
    stopped. Of several of these processes one runs the jobs, and one on a machine shows the page.
    """
    start_part(parent)
    set_up_log("json" if as_json else log_format, log_level)
    from consumers.commands import serve as work  # noqa: PLC0415

    work.serve(config, metrics_port=metrics_port, restarts=restarts)


@app.command(short_help="The jobs of the file: when they ran, what came of it, when they run next.")
def jobs(
    action: Annotated[str, typer.Argument(help="list, show, pause or resume.", metavar="ACTION")] = "list",
    job: Annotated[str, typer.Argument(help="A job of `schedules:`.", metavar="JOB")] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """List the jobs of the file, show one's runs, pause or resume it.

    `list` exits 1 when one has failed, did not begin in time, or has no result that is fresh enough.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import jobs as work  # noqa: PLC0415

    raise typer.Exit(work.act(config, action, job, as_json=as_json))


@app.command("run-job", short_help="Have a job run now.")
def run_job(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over; exit 1 when it failed.")] = False,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Have a job run now, by the scheduler of `tailrace serve`. One that runs already is joined."""
    set_up_log(log_format, log_level)
    from consumers.commands import jobs as work  # noqa: PLC0415

    raise typer.Exit(work.run_job(config, job, wait=wait, as_json=as_json))


@app.command(short_help="Have flows wait: nothing more of them is written.")
def pause(
    flows: FlowsArgument,
    why: Annotated[str, typer.Option("--why", help="For those who look.", metavar="TEXT")] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Have flows wait where they are, whatever is restarted, until `resume`. Others of the target go on."""
    set_up_log(log_format, log_level)
    from consumers.commands import pauses as work  # noqa: PLC0415

    raise typer.Exit(work.act(config, flows, paused=True, why=why, as_json=as_json))


@app.command(short_help="Have paused flows go on from where they are.")
def resume(
    flows: FlowsArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Have paused flows go on from where they are."""
    set_up_log(log_format, log_level)
    from consumers.commands import pauses as work  # noqa: PLC0415

    raise typer.Exit(work.act(config, flows, paused=False, why="", as_json=as_json))


@app.command(short_help="One line and an exit code, for cron or a probe.")
def check(
    flows: Annotated[
        list[str] | None, typer.Argument(help="Flows of the file; all unless given.", metavar="FLOW")
    ] = None,
    max_lag: Annotated[
        str,
        typer.Option("--max-lag", help="A flow that is further behind is a finding: 60s.", metavar="TIME"),
    ] = "",
    max_proof_age: Annotated[
        str,
        typer.Option(
            "--max-proof-age", help="So is one that was not proven equal for so long: 1d.", metavar="TIME"
        ),
    ] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Check what `status` finds, and these limits. Exits 1 with a line for each flow that is not well."""
    set_up_log(log_format, log_level)
    from consumers.commands import check as work  # noqa: PLC0415

    code = work.check(config, flows or [], max_lag=max_lag, max_proof_age=max_proof_age, as_json=as_json)
    raise typer.Exit(code)


@app.command(short_help="Where one row is: source, log, targets, and what is between them.")
def why(
    table: Annotated[str, typer.Argument(help="SCHEMA.TABLE, or an entity.", metavar="TABLE")],
    key: Annotated[str, typer.Argument(help="7, or '{\"id\":7}', or '[1,7]'.", metavar="KEY")],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show one row in the source and in each target, its last events, what it waits for, the last proof.

    Exits 1 when a target has not what the source has, and it is not on its way.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import why as work  # noqa: PLC0415

    raise typer.Exit(work.show(config, table, key, as_json=as_json))


@app.command(short_help="What is wrong and what was; a test of the channels.")
def alerts(
    action: Annotated[str, typer.Argument(help="list or test.", metavar="ACTION")] = "list",
    channel: Annotated[
        str, typer.Argument(help="With test: one of `alerts.channels`, else all.", metavar="CHANNEL")
    ] = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """List what is wrong and what was, the open events first; or send a test message to each channel.

    `list` exits 1 when an event is open, `test` when a channel was not reached.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import alerts as work  # noqa: PLC0415

    raise typer.Exit(work.act(config, action, channel, as_json=as_json))
