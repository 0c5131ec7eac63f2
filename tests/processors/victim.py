"""A worker as a process of its own: `python -m tests.processors.victim CONFIG [STAND_STILL_S]`."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from consumers.processors.worker import run_processor
from streamer.commands.part import until_stopped
from streamer.config import load
from streamer.errors import TailraceError
from streamer.status import StatusWriter
from tests.harness.processing import NAME


def last_word(error: TailraceError) -> None:
    print(error, file=sys.stderr, flush=True)


async def main(path: Path, stand_still_s: float) -> None:
    config = load(path)
    status = StatusWriter(config.kafka.brokers, None, config.name, kind="process", part_name=NAME)

    async def body(stop: asyncio.Event) -> None:
        await run_processor(
            config, NAME, stop=stop, status=status, stand_still_s=stand_still_s, last_word=last_word
        )

    async with status:
        await until_stopped(body, status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        uvloop.run(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 15.0))
    except TailraceError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
