"""`tailrace reset`: a source or a processor begins again."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
import uvloop

from consumers.processors.operations import reset_processor
from streamer.cli import print_json
from streamer.commands import capture
from streamer.commands.brokers import embedded_kafka, with_brokers
from streamer.config import load
from streamer.config.base import no_such
from streamer.errors import ConfigError


def reset(path: Path, name: str, *, sure: bool, above: int, as_json: bool) -> None:
    """`name`: of a source or a processor; no two of them have one."""
    config = load(path)
    if name in config.processors:
        epoch = _processor(path, name, sure=sure, above=above)
        kind, text = "processor", "it derives everything again with its next `tailrace process`"
    elif name in config.sources:
        epoch = capture.reset(path, name, sure=sure, above=above)
        kind, text = "source", "the copy starts with its next capture"
    else:
        raise no_such("source or processor", name, [*config.sources, *config.processors], config.path)
    if as_json:
        print_json({kind: name, "epoch": epoch})
    else:
        typer.echo(f"{name} begins again with epoch {epoch}; {text}")


def _processor(path: Path, name: str, *, sure: bool, above: int) -> int:
    config = load(path)
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError("`reset` asks before it begins", fix=f"write `tailrace reset {name} --yes`")
        typer.confirm(
            f"Throw the state of {name} away, and derive all its rows again from what Kafka has of its"
            " inputs? Its workers must be stopped; targets keep their rows meanwhile.",
            abort=True,
            err=True,
        )
    with embedded_kafka(config):
        return uvloop.run(reset_processor(with_brokers(config), name, above=above))
