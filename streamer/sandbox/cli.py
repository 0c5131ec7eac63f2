"""The commands `tailrace sandbox up` and `tailrace sandbox down`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from streamer.errors import TailraceError
from streamer.sandbox.detached import start_detached, stop_detached

app = typer.Typer(
    help="Real PostgreSQL, Valkey and Kafka servers for a look or a test.", no_args_is_help=True
)

Dir = Annotated[Path | None, typer.Option("--dir", help="Folder of the servers (default: a temporary one).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    dir: Dir = None,
    postgres: Annotated[int, typer.Option(help="How many PostgreSQL servers.")] = 2,
    valkey: Annotated[int, typer.Option(help="How many Valkey servers.")] = 1,
    kafka: Annotated[int, typer.Option(help="Kafka: 0 or 1.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data in --dir at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Start servers in the background and print their URLs."""
    try:
        state = start_detached(dir, keep=keep, postgres=postgres, valkey=valkey, kafka=kafka, on_progress=say)
    except TailraceError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(state["urls"]))
        return
    urls = state["urls"]
    for kind in ("postgres", "valkey"):
        for url in urls[kind]:
            typer.echo(f"{kind:9} {url}")
    if urls["kafka"]:
        typer.echo(f"{'kafka':9} {urls['kafka']}")
    typer.echo(f"{'folder':9} {state['folder']}")
    typer.echo(f"{'stop':9} tailrace sandbox down" + (f" --dir {dir}" if dir else ""))


@app.command()
def down(dir: Dir = None, as_json: Json = False) -> None:
    """Stop the servers and remove what they left (not the data of `up --keep`)."""
    try:
        stopped = stop_detached(dir)
    except TailraceError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        typer.echo("stopped" if stopped else "no sandbox is up here")


def say(text: str) -> None:
    typer.echo(text, err=True)


def fail(error: TailraceError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(error.exit_code)
