"""`tailrace apply`: one target of a config file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from consumers.apply.loop import run_apply
from streamer import metrics
from streamer.commands.brokers import with_brokers
from streamer.commands.part import run_part
from streamer.config import load
from streamer.config.base import no_such
from streamer.status import StatusWriter


def apply(path: Path, target: str, *, metrics_port: int, restarts: int) -> None:
    """Until stopped."""
    config = load(path)
    if target not in config.targets:
        raise no_such("target", target, config.targets, config.path)
    config = with_brokers(config)

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        await run_apply(config, target, stop=stop, status=status, metrics=metrics.latency)

    run_part(config, "apply", target, body, metrics_port=metrics_port, restarts=restarts)
