"""The capture side of the command line, and what every command shares.

Owns how errors become messages and exit codes; the options are in streamer.options. Nothing of what the
commands do is here: each imports its work when it runs, so that `--help` and a mistyped option answer at
once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import orjson
import typer

from streamer import DEFAULT_PATH, logs
from streamer.cli_sandbox import app as sandbox
from streamer.errors import EXIT_OK, EXIT_RUNTIME, EXIT_USAGE, ConfigError, TailraceError, bug
from streamer.options import (
    ConfigOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    MetricsOption,
    ParentOption,
    RestartsOption,
    SourceArgument,
)
from streamer.output import write_whole

log = logs.Log(__name__)

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PR_SET_PDEATHSIG = 1  # prctl(2)

# typer does not export the parent of its usage errors.
UsageError: type[typer.TyperException] = typer.BadParameter.__mro__[1]

app = typer.Typer()


def set_up_log(log_format: str, log_level: str) -> None:
    if log_format not in ("human", "json"):
        raise ConfigError(f"--log-format {log_format!r} is not known", fix="write human or json")
    if log_level not in logs.LEVELS:
        raise ConfigError(f"--log-level {log_level!r} is not known", fix=f"write {', '.join(logs.LEVELS)}")
    logs.setup("json" if log_format == "json" else "human", level=log_level)


def print_json(value: Any, *, line: bool = False) -> None:
    """To stdout; `line`: compact, one a line, for streams."""
    options = orjson.OPT_APPEND_NEWLINE | (0 if line else orjson.OPT_INDENT_2)
    write_whole(sys.stdout.buffer, orjson.dumps(value, option=options))
    sys.stdout.flush()


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, however that ends."""
    if parent <= 0 or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call
        raise SystemExit(EXIT_OK)


def start_part(parent: int) -> None:
    """First of all in a command that runs until it is stopped: a SIGTERM while it still imports its work ends
    it as it would later, with nothing begun."""
    signal.signal(signal.SIGTERM, _ended_early)
    die_with(parent)


def _ended_early(_number: int, _frame: object) -> None:
    raise SystemExit(EXIT_OK)


@app.command(short_help="Copy the changes of one source into Kafka, until stopped.")
def capture(
    source: SourceArgument,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Copy the changes of one source into Kafka, until stopped."""
    start_part(parent)
    set_up_log(log_format, log_level)
    from streamer.commands import capture as work  # noqa: PLC0415

    work.capture(config, source, metrics_port=metrics_port, restarts=restarts)


app.add_typer(sandbox, name="sandbox", short_help="Real servers for a look or a test.")


def run_command(program: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """The whole of `main`: runs the command, prints what went wrong, returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _built(program).main(given, prog_name="tailrace", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except UsageError as error:
        if "--json" in given:
            print_error(_usage_error(error), as_json=True)
        else:
            error.show()  # type: ignore[attr-defined]
        return EXIT_USAGE
    except TailraceError as error:
        print_error(error, as_json="--json" in given, command=_command(program, given))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as error:  # click's, of a reader that has seen enough: `tailrace status | head`
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return EXIT_OK
    except Exception as error:
        log.exception("a bug of Tailrace: please report it with these lines")
        if "--json" in given:
            print_error(TailraceError(bug(error)), as_json=True)
        return EXIT_RUNTIME


@functools.cache
def _built(program: typer.Typer) -> Any:
    """From the signatures of all its functions: 25 ms."""
    return typer.main.get_command(program)


def _command(program: typer.Typer, given: Sequence[str]) -> str:
    """'tailrace dead-letters list': the command of a command line."""
    names = ["tailrace"]
    command = _built(program)
    for word in given:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        names.append(word)
    return " ".join(names)


def _usage_error(error: Any) -> ConfigError:
    command = error.ctx.command_path if error.ctx is not None else "tailrace"
    return ConfigError(error.format_message(), fix=f"see `{command} --help`", where=command)


def print_error(error: TailraceError, *, as_json: bool, command: str = "tailrace") -> None:
    """To stderr: 'error: where: what' and the fix below it, or one JSON line.

    In JSON `where` is never empty: what has no place of its own is about the command line.
    """
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
            "where": logs.redact(error.where or command),
            "fix": logs.redact(error.fix),
            "problems": [
                {
                    "what": logs.redact(p.what),
                    "where": logs.redact(p.where or command),
                    "fix": logs.redact(p.fix),
                }
                for p in error.problems
            ],
            "exit_code": error.exit_code,
        }
    }
    typer.echo(orjson.dumps(fields), err=True)
