"""`tailrace init`: a commented config for a copy of one Postgres database in another."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated

import orjson
import typer

from streamer import DEFAULT_PATH
from streamer.errors import ConfigError
from streamer.options import JsonOption

TEMPLATE = "init.yaml"
NEXT = (
    "export SOURCE_URL=postgresql://user:password@host:5432/database",
    "export TARGET_URL=postgresql://user:password@host:5432/database",
    "tailrace doctor",
    "tailrace run",
)


def init(
    directory: Annotated[Path | None, typer.Argument(help="Where to write tailrace.yaml.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The file to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented config: Postgres to Postgres, with a Kafka that `tailrace run` keeps beside itself.

    A file that is there already stays as it is, unless --force is given.
    """
    if directory is not None and config is not None:
        raise ConfigError("DIR and -c FILE both say where to write", fix="give one of them")
    path = config or (directory or Path()) / DEFAULT_PATH
    write(path, force=force)
    commands = [
        f"{line} -c {path}" if line.startswith("tailrace") and path != DEFAULT_PATH else line for line in NEXT
    ]
    if as_json:
        typer.echo(orjson.dumps({"path": str(path), "next": commands}).decode())
        return
    typer.echo(f"wrote {path}\n\nNext:")
    for line in commands:
        typer.echo(f"  {line}")


def write(path: Path, *, force: bool = False) -> None:
    """Raises ConfigError when the file is there (without `force`) or cannot be written."""
    text = resources.files("streamer.commands").joinpath(TEMPLATE).read_text(encoding="utf-8")
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be made: {error.strerror}"
        raise ConfigError(what, fix="choose another folder", where=str(path.parent)) from None
    try:
        with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        fix = "keep it, write elsewhere with -c FILE, or write over it with --force"
        raise ConfigError("is there already, and was not changed", fix=fix, where=str(path)) from None
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigError(what, fix="choose another folder, or mend its rights", where=str(path)) from None
