"""`tailrace adopt TARGET`: the store as it is now is the one of the target's consumer group."""

from __future__ import annotations

from pathlib import Path

import typer
import uvloop

from consumers.commands.parked import opened
from streamer.binding import bind, bound_to
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import Config, load
from streamer.errors import EXIT_OK


def adopt(path: Path, target: str, *, as_json: bool) -> int:
    """The exit code."""
    config = load(path)
    before, now = uvloop.run(_adopt(config, brokers_of(config), target))
    if as_json:
        print_json({"target": target, "before": before, "now": now})
    elif before in (None, now):
        typer.echo(f"{target} is bound to no other store: start apply")
    else:
        typer.echo(
            f"{target} is bound to this store now (its id is {now}): start apply, which fills it from Kafka"
        )
    return EXIT_OK


async def _adopt(config: Config, brokers: str, name: str) -> tuple[str | None, str]:
    """The ids before and now. Raises ConfigError, KafkaUnavailable, FatalError."""
    group, security = f"{config.name}.{name}", config.kafka.security
    async with opened(config, name) as target:
        now = target.id
        before = await bound_to(brokers, security, group)
        if before not in (None, now):
            await bind(brokers, security, group, now)
        return before, now
