"""`python -m tests.crash.process --rounds 20`: workers of processors killed and joined, again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from rich.console import Console

from streamer.sandbox import Sandbox
from tests.crash.command import begin, parser_of, table, tell
from tests.crash.process.run import LOAD_S, VICTIMS, ProcessRun

TABLE_WIDTH = 130  # characters; also where the output goes to a file


def main() -> int:
    options = parser_of("tests.crash.process", __doc__, "victims", VICTIMS, LOAD_S).parse_args()
    console = Console(width=TABLE_WIDTH)
    seed, victims = begin(options, "victims", console)
    began_s = time.monotonic()
    with Sandbox(postgres=2, kafka=1, fast=True) as sandbox:
        folder = Path(sandbox.folder) / "pipeline"
        run = ProcessRun(
            folder, sandbox, seed=seed, victims=victims, load_s=options.seconds, say=console.print
        )
        score = asyncio.run(run.run(options.rounds))
    met = {f"met {victim}": score.kills[victim] for victim in victims}
    found = {"lost": score.lost, "doubled": score.doubled, "exits": score.exits, "began again": score.gave_up}
    title = (
        f"crash run of processors, seed {seed}, {time.monotonic() - began_s:.0f} s, {score.changes:,} changes"
    )
    shown = table(title, {"rounds": score.rounds, **met, **found})
    return tell(console, [shown], score.notes, ok=score.ok)


if __name__ == "__main__":
    sys.exit(main())
