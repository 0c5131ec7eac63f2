"""The commands `tailrace sandbox up` and `tailrace sandbox down`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer import SANDBOX_MOST
from streamer.options import JsonOption

app = typer.Typer(
    help="Real PostgreSQL, Valkey and Kafka servers for a look or a test.", no_args_is_help=True
)

Dir = Annotated[Path | None, typer.Option("--dir", help="Folder of the servers (default: a temporary one).")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A config for these servers: `up` writes it, `down` removes it."),
]


@app.command()
def up(
    dir: Dir = None,
    postgres: Annotated[
        int, typer.Option(min=0, max=SANDBOX_MOST, metavar="N", help="How many PostgreSQL servers.")
    ] = 2,
    valkey: Annotated[
        int, typer.Option(min=0, max=SANDBOX_MOST, metavar="N", help="How many Valkey servers.")
    ] = 1,
    kafka: Annotated[int, typer.Option(min=0, max=1, metavar="N", help="Kafka: 0 or 1.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data in --dir at the end.")] = False,
    config: Config = None,
    as_json: JsonOption = False,
) -> None:
    """Start servers in the background and print their URLs."""
    from streamer.commands import sandbox as work  # noqa: PLC0415

    work.up(dir, postgres=postgres, valkey=valkey, kafka=kafka, keep=keep, config=config, as_json=as_json)


@app.command(short_help="Stop the servers and remove what they left.")
def down(dir: Dir = None, config: Config = None, as_json: JsonOption = False) -> None:
    """Stop the servers and remove what they left (not the data of `up --keep`)."""
    from streamer.commands import sandbox as work  # noqa: PLC0415

    work.down(dir, config=config, as_json=as_json)
