"""`python -m tests.crash --rounds 200`: kill -9 of every part, again and again; exit 1 on any finding."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamer.sandbox import Sandbox
from tests.crash.command import begin, parser_of, table, tell
from tests.crash.run import LOAD_S, VICTIMS, CrashRun, Score

TABLE_WIDTH = 130  # characters; also where the output goes to a file


def main() -> int:
    options = parser_of("tests.crash", __doc__, "victims", VICTIMS, LOAD_S).parse_args()
    console = Console(width=TABLE_WIDTH)
    seed, victims = begin(options, "victims", console)
    began_s = time.monotonic()
    with Sandbox(postgres=2, kafka=1, fast=True) as sandbox:
        folder = Path(sandbox.folder) / "pipeline"
        run = CrashRun(folder, sandbox, seed=seed, victims=victims, load_s=options.seconds, say=console.print)
        score = asyncio.run(run.run(options.rounds))
    shown = result(score, victims, seed, time.monotonic() - began_s)
    return tell(console, [shown], score.notes, ok=score.ok)


def result(score: Score, victims: list[str], seed: int, seconds: float) -> Table:
    load = f"{score.changes:,} changes, {score.judged:,} transactions judged"
    kills = {f"killed {victim}": score.kills[victim] for victim in victims}
    findings = {
        "lost": score.lost,
        "doubled": score.doubled,
        "regressed": score.regressed,
        "gave up": score.exits,
    }
    cells = {"rounds": score.rounds, **kills, **findings}
    return table(f"crash run, seed {seed}, {seconds:.0f} s, {load}", cells)


if __name__ == "__main__":
    sys.exit(main())
