"""The command `tailrace demo`: options, output and exit code. The work is in demo.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from consumers.demo.demo import Demo, Running
from consumers.demo.outcome import Outcome
from consumers.demo.screen import Screen
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.sandbox import Sandbox

SHORTEST_S = 5.0  # below it there is no middle to kill in


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running and print the URLs.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=SHORTEST_S, help="How long the shop is at work.")] = 20.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same transactions.")] = 1,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="Where the demo's config is written (default: a temporary folder)."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Two Postgres, a Kafka, a shop at work, two kills and a verdict: is the copy equal?

    Exit codes: 0 equal, 1 not equal (or nothing was killed), 2 the demo could not run.
    """
    if config is not None and config.exists():
        raise ConfigError(
            f"{config} is there already", fix="name another file: the demo writes its own config"
        )
    console = Console()
    screen = Screen(console, quiet=json)
    with screen:
        screen.note("starting two PostgreSQL servers and a Kafka")
        sandbox = Sandbox(postgres=2, kafka=1, on_progress=screen.note)
        sandbox.start()
        try:
            running = Demo(sandbox, screen, seconds=seconds, seed=seed, config=config)
            outcome = asyncio.run(running.run())
            outcome.advice = _advice(running.running() if keep else None)
            kept = running.running() if keep else None
            if keep:
                sandbox.detach()
        except BaseException:
            sandbox.close()
            raise
        if not keep:
            sandbox.close()
            if config is not None:
                config.unlink(missing_ok=True)
    screen.verdict(outcome)
    if json:
        console.file.write(_json(outcome, kept) + "\n")
    raise typer.Exit(EXIT_OK if outcome.passed else EXIT_FINDING)


def _advice(kept: Running | None) -> tuple[str, ...]:
    if kept is None:
        return (
            "Next: `tailrace demo --keep` leaves all of it running to look at;",
            "`tailrace init` writes a config for your own databases, `tailrace doctor` checks them.",
        )
    return (
        f"source       {kept.urls['source']}",
        f"target       {kept.urls['target']}",
        f"kafka        {kept.urls['kafka']}",
        f"look at it   tailrace status --watch -c {kept.config}",
        f"its log      {kept.log}",
        f"end it       kill {kept.guardian_pid}",
    )


def _json(outcome: Outcome, kept: Running | None) -> str:
    plain = outcome.plain()
    if kept is not None:
        plain["running"] = {
            **kept.urls,
            "config": str(kept.config),
            "log": str(kept.log),
            "supervisor_pid": kept.supervisor_pid,
            "guardian_pid": kept.guardian_pid,
        }
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode()
