"""The command `tailrace demo`: options, output and exit code. The work is in demo.py."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from consumers.demo.demo import Running
    from consumers.demo.outcome import Outcome
    from consumers.demo.screen import Screen

SHORTEST_S = 5.0  # below it there is no middle to kill in
LONGEST_S = 3600.0  # beyond it the sandbox's disk fills
CATCH_UP_S = 60.0  # a hundred times what it takes; a loaded machine may need ten


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running and print the URLs.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=SHORTEST_S, max=LONGEST_S, help="How long the shop is at work.")
    ] = 20.0,
    catch_up: Annotated[
        float,
        typer.Option(
            min=1.0,
            max=LONGEST_S,
            help="Seconds that the last change may take to arrive before it is missing.",
        ),
    ] = CATCH_UP_S,
    seed: Annotated[int, typer.Option(help="The same seed makes the same transactions.")] = 1,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="Where the demo's config is written (default: a temporary folder)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Two Postgres, a Kafka, a shop at work, two kills and a verdict: is the copy equal?

    Exit codes: 0 equal, 1 not equal (or nothing was killed), 2 the demo could not run.
    """
    import asyncio  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from consumers.demo.demo import Demo  # noqa: PLC0415
    from consumers.demo.screen import Screen  # noqa: PLC0415
    from streamer.sandbox import Sandbox  # noqa: PLC0415
    from streamer.sandbox.detached import leave_running  # noqa: PLC0415

    if config is not None and config.exists():
        raise ConfigError(
            f"{config} is there already", fix="name another file: the demo writes its own config"
        )
    began_s = time.monotonic()
    console = Console()
    screen = Screen(console, quiet=as_json)
    with screen:
        screen.note("starting two PostgreSQL servers and a Kafka")
        sandbox = Sandbox(postgres=2, kafka=1, on_progress=screen.note)
        sandbox.start()
        try:
            running = Demo(
                sandbox,
                screen,
                seconds=seconds,
                seed=seed,
                began_s=began_s,
                config=config,
                catch_up_s=catch_up,
            )
            outcome = asyncio.run(running.run())
            outcome.advice = _advice(running.running() if keep else None)
            kept = running.running() if keep else None
            if keep:
                leave_running(sandbox, sandbox.folder)
        except BaseException:
            sandbox.close()
            raise
        if not keep:
            sandbox.close()
            if config is not None:
                config.unlink(missing_ok=True)
    raise typer.Exit(conclude(outcome, screen, console, kept, as_json=as_json))


def conclude(
    outcome: Outcome, screen: Screen, console: Console, kept: Running | None = None, *, as_json: bool = False
) -> int:
    """Show the verdict; the exit code."""
    screen.verdict(outcome)
    if as_json:
        console.file.write(_json(outcome, kept) + "\n")
    return EXIT_OK if outcome.passed else EXIT_FINDING


def _advice(kept: Running | None) -> tuple[str, ...]:
    return advice(kept, started_as(sys.argv[0], Path.cwd(), shutil.which("tailrace")))


def advice(kept: Running | None, command: str) -> tuple[str, ...]:
    """What to type next; `command`: `tailrace`, as it is to be typed here."""
    if kept is None:
        return (
            "",
            "Next, to leave all of it running to look at; a config for your own databases; a check of them:",
            f"{command} demo --keep",
            f"{command} init",
            f"{command} doctor",
        )
    return (
        "",
        "source, target and Kafka:",
        str(kept.urls["source"]),
        str(kept.urls["target"]),
        str(kept.urls["kafka"]),
        "",
        "look at it, read its log:",
        f"{command} status --watch -c {shlex.quote(str(kept.config))}",
        f"less {shlex.quote(str(kept.log))}",
        "",
        "stop all of it, both servers, Kafka and `tailrace run`, and remove their folder:",
        f"{command} {stop(kept)}",
    )


def stop(kept: Running) -> str:
    """The arguments of `tailrace` that end what --keep has left running."""
    from streamer.sandbox.detached import how_to_stop  # noqa: PLC0415

    return how_to_stop(kept.folder).removeprefix("tailrace ")


def started_as(argv0: str, folder: Path, on_path: str | None) -> str:
    """What to type in `folder` for the command that runs; `on_path`: what `tailrace` alone would start."""
    program = Path(os.path.abspath(folder / argv0))  # a link keeps its name
    if program.name != "tailrace":
        return "tailrace"  # as a module: there is no program to name
    if on_path is not None and Path(on_path) == program:
        return "tailrace"
    return shlex.quote(str(program.relative_to(folder) if program.is_relative_to(folder) else program))


def _json(outcome: Outcome, kept: Running | None) -> str:
    plain = outcome.plain()
    if kept is not None:
        plain["running"] = {
            **kept.urls,
            "config": str(kept.config),
            "log": str(kept.log),
            "stop": f"tailrace {stop(kept)}",
            "supervisor_pid": kept.supervisor_pid,
            "guardian_pid": kept.guardian_pid,
        }
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode()
