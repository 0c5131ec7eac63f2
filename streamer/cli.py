"""The capture side of the command line, and what every command shares.

Owns the options that all commands take, how errors become messages and exit codes, and the life of a
long-running process: signals, heartbeat, metrics, the deadline for stopping. Nothing of what the
commands do is here.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import structlog
import typer
import uvloop

from streamer import logs, metrics
from streamer.commands.doctor import doctor
from streamer.commands.init import init
from streamer.config import DEFAULT_PATH, EMBEDDED, Config, load
from streamer.errors import (
    EXIT_OK,
    EXIT_RUNTIME,
    EXIT_USAGE,
    ConfigError,
    KafkaUnavailable,
    TailraceError,
)
from streamer.runner import postgres_source, reset_source, run_capture
from streamer.sandbox.cli import app as sandbox
from streamer.sandbox.kafka import KafkaServer, embedded_bootstrap
from streamer.status import State, StatusWriter

log = structlog.get_logger(__name__)

STOP_DEADLINE_S = 7.0  # for the flush in hand; with the heartbeat's last 2 s it is under the promised 10 s
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PR_SET_PDEATHSIG = 1  # prctl(2)

# typer does not export the parent of its usage errors.
UsageError: type[typer.TyperException] = typer.BadParameter.__mro__[1]

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The config file.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogFormatOption = Annotated[
    str, typer.Option("--log-format", help="human or json, on stderr.", metavar="FORMAT")
]
LogLevelOption = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL")
]
MetricsOption = Annotated[
    int, typer.Option(help="Port on 127.0.0.1 for /metrics: 0 any free one (see `status`), -1 off.")
]
ParentOption = Annotated[int, typer.Option(hidden=True, help="End when this process ends.")]
RestartsOption = Annotated[int, typer.Option(hidden=True, help="How often it has been started again.")]

app = typer.Typer()


def read_config(path: Path) -> Config:
    """Raises ConfigError with file:line."""
    return load(path)


def brokers_of(config: Config) -> str:
    """host:port,... also where the file says `embedded`. Raises KafkaUnavailable when that never ran."""
    if config.kafka.brokers != EMBEDDED:
        return config.kafka.brokers
    found = embedded_bootstrap(embedded_folder(config), running=False)
    if found is None:
        raise KafkaUnavailable(
            "the embedded Kafka has not been started yet",
            where=str(config.path),
            fix="start it with `tailrace run` in this folder, or name a Kafka in kafka.brokers",
        )
    return found


@contextmanager
def embedded_kafka(config: Config) -> Iterator[None]:
    """The embedded Kafka, started for a command when no `tailrace run` keeps it."""
    folder = embedded_folder(config)
    if config.kafka.brokers != EMBEDDED or embedded_bootstrap(folder) is not None or not folder.exists():
        yield
        return
    with KafkaServer(folder, keep=True):
        yield


def with_brokers(config: Config) -> Config:
    """The same config with the brokers' addresses in place of `embedded`."""
    return config.model_copy(
        update={"kafka": config.kafka.model_copy(update={"brokers": brokers_of(config)})}
    )


def embedded_folder(config: Config) -> Path:
    return config.base / ".tailrace" / "kafka"


def set_up_log(log_format: str, log_level: str) -> None:
    if log_format not in ("human", "json"):
        raise ConfigError(f"--log-format {log_format!r} is not known", fix="write human or json")
    if log_level not in logs.LEVELS:
        raise ConfigError(f"--log-level {log_level!r} is not known", fix=f"write {', '.join(logs.LEVELS)}")
    logs.setup("json" if log_format == "json" else "human", level=log_level)


def print_json(value: Any, *, line: bool = False) -> None:
    """To stdout; `line`: compact, one a line, for streams."""
    options = orjson.OPT_APPEND_NEWLINE | (0 if line else orjson.OPT_INDENT_2)
    sys.stdout.buffer.write(orjson.dumps(value, option=options))
    sys.stdout.flush()


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, however that ends."""
    if parent <= 0 or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        raise SystemExit(EXIT_OK)


def run_part(
    config: Config,
    kind: str,
    name: str,
    body: Callable[[asyncio.Event, StatusWriter], Awaitable[Any]],
    *,
    metrics_port: int,
    restarts: int = 0,
) -> None:
    """One process of the pipeline, from start to SIGTERM. `config` names the brokers (with_brokers)."""

    async def part() -> None:
        status = StatusWriter(
            config.kafka.brokers,
            config.kafka.security,
            config.name,
            kind=kind,
            part_name=name,
            replication_factor=config.kafka.topics.replication_factor,
            restarts=restarts,
        )
        with metrics.serve(metrics_port, lambda: status.record) as port:
            if port is not None:
                status.serves_metrics(port)
            async with status:
                try:
                    await until_stopped(lambda stop: body(stop, status), status)
                except TailraceError as error:
                    status.update(state=State.ERROR, reason=str(error))
                    raise
                except Exception as error:
                    status.update(state=State.ERROR, reason=f"a bug of Tailrace: {error!r}")
                    raise

    uvloop.run(part())


async def until_stopped(
    body: Callable[[asyncio.Event], Awaitable[Any]],
    status: StatusWriter | None = None,
    *,
    deadline_s: float = STOP_DEADLINE_S,
) -> None:
    """Run the body until it ends by itself, or SIGTERM or SIGINT has set its event and it has ended.

    A body that does not end within the deadline is cancelled: nothing is confirmed that is not
    durable, so a start after it loses nothing. A second signal cancels at once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(body(stop))
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked:
            log.warning("second signal: not waiting for the work in hand")
            task.cancel()
            return
        asked = True
        log.info("stopping", signal=signal.Signals(number).name)
        if status is not None:
            status.update(state=State.STOPPING)
        stop.set()
        loop.call_later(deadline_s, give_up)

    def give_up() -> None:
        if not task.done():
            log.warning("the work in hand did not end in time; it is done again at the next start")
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@app.command()
def capture(
    source: Annotated[str, typer.Argument(help="A name below `sources:`.")],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Copy the changes of one source into Kafka, until stopped."""
    die_with(parent)
    set_up_log(log_format, log_level)
    settings = read_config(config)
    postgres_source(settings, source)
    settings = with_brokers(settings)

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        await run_capture(settings, source, brokers=settings.kafka.brokers, stop=stop, status=status)

    run_part(settings, "capture", source, body, metrics_port=metrics_port, restarts=restarts)


@app.command()
def reset(
    source: Annotated[str, typer.Argument(help="A name below `sources:`.")],
    config: ConfigOption = DEFAULT_PATH,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Begin a source again: new epoch, slot and snapshot; rows that only older epochs wrote go at its end."""
    set_up_log(log_format, log_level)
    settings = read_config(config)
    postgres_source(settings, source)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("`reset` asks before it begins", fix=f"write `tailrace reset {source} --yes`")
        typer.confirm(
            f"Drop the slot of {source} and copy all its tables again? Targets keep their rows meanwhile.",
            abort=True,
            err=True,
        )
    with embedded_kafka(settings):
        epoch = uvloop.run(reset_source(settings, source, brokers=brokers_of(settings)))
    if as_json:
        print_json({"source": source, "epoch": epoch})
    else:
        typer.echo(f"{source} begins again with epoch {epoch}; the copy starts with its next capture")


app.command()(init)
app.command()(doctor)
app.add_typer(sandbox, name="sandbox")


def run_command(program: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """The whole of `main`: runs the command, prints what went wrong, returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(program).main(given, prog_name="tailrace", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except UsageError as error:
        error.show()  # type: ignore[attr-defined]
        return EXIT_USAGE
    except TailraceError as error:
        print_error(error, as_json="--json" in given)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `tailrace status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        log.exception("a bug of Tailrace: please report it with these lines")
        if "--json" in given:
            print_error(TailraceError(f"a bug of Tailrace: {error!r}"), as_json=True)
        return EXIT_RUNTIME


def print_error(error: TailraceError, *, as_json: bool) -> None:
    """To stderr: 'error: where: what' and the fix below it, or one JSON line."""
    if not as_json:
        typer.echo(f"error: {logs.redact(str(error))}", err=True)
        return
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, TailraceError)]
    fields = {
        "error": {
            "kind": kinds[0],
            "kinds": kinds,
            "message": logs.redact(str(error)),
            "what": logs.redact(error.what),
            "where": logs.redact(error.where),
            "fix": logs.redact(error.fix),
            "exit_code": error.exit_code,
        }
    }
    typer.echo(orjson.dumps(fields), err=True)
