"""`tailrace sandbox up` and `down`: servers in the background, and a config for them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import typer
import yaml

from streamer.errors import ConfigError
from streamer.sandbox.detached import how_to_stop, start_detached, stop_detached

CONFIG_MARK = "# Written by `tailrace sandbox up -c`; `tailrace sandbox down -c` removes it.\n"


def up(
    dir: Path | None,
    *,
    postgres: int,
    valkey: int,
    kafka: int,
    keep: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    if keep and dir is None:
        raise ConfigError("--keep without --dir: nobody would find the data", fix="add --dir FOLDER")
    if config is not None:
        check_config(config, postgres=postgres, kafka=kafka)
    state = start_detached(dir, keep=keep, postgres=postgres, valkey=valkey, kafka=kafka, on_progress=say)
    if config is not None:
        write_config(config, state["urls"])
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
    if config is not None:
        typer.echo(f"{'config':9} {config}    next: tailrace run -c {config}")
    made = f" -c {shlex.quote(str(config.absolute()))}" if config else ""
    typer.echo(f"{'stop':9} {how_to_stop(dir)}{made}")


def down(dir: Path | None, *, config: Path | None, as_json: bool) -> None:
    stopped = stop_detached(dir)
    if config is not None:
        remove_config(config)
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        where = (
            f"in {dir.absolute()}" if dir else "without --dir; of another one name its folder: --dir FOLDER"
        )
        typer.echo("stopped" if stopped else f"no sandbox is up {where}")


def check_config(path: Path, *, postgres: int, kafka: int) -> None:
    if path.exists():
        raise ConfigError(f"{path} is there already", fix="name another file, or remove it")
    if postgres < 2 or kafka < 1:
        raise ConfigError(
            "a config needs two PostgreSQL servers and a Kafka", fix="leave out --postgres and --kafka"
        )


def write_config(path: Path, urls: dict[str, Any]) -> None:
    """The first server's public tables go to schema `mirror` of the second. It holds passwords: mode 600."""
    source, target = urls["postgres"][:2]
    document = {
        "name": "sandbox",
        "kafka": {"brokers": urls["kafka"]},
        "sources": {"shop": {"kind": "postgres", "url": source, "tables": {"public.*": {}}}},
        "targets": {"copy": {"kind": "postgres", "url": target}},
        "flows": {"mirror": {"from": "shop.public.*", "to": "copy.mirror"}},
    }
    path.touch(mode=0o600)
    path.write_text(CONFIG_MARK + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def remove_config(path: Path) -> None:
    """Only what `up` has written."""
    if path.is_file() and path.read_text(encoding="utf-8").startswith(CONFIG_MARK):
        path.unlink()


def say(text: str) -> None:
    typer.echo(text, err=True)
