"""`python -m tests.crash --rounds 200`: kill -9 of every part, again and again; exit 1 on any finding."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamer.sandbox import Sandbox
from tests.crash.run import LOAD_S, VICTIMS, CrashRun, Score

TABLE_WIDTH = 130  # characters; also where the output goes to a file


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=None, help="plan of the run; drawn and printed if not given"
    )
    parser.add_argument("--victims", default=",".join(VICTIMS), help="any of %(default)s")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help="load a round")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    victims = [v.strip() for v in options.victims.split(",") if v.strip()]
    console = Console(width=TABLE_WIDTH)
    console.print(f"seed {seed}, {options.rounds} rounds, victims {', '.join(victims)}", highlight=False)
    began = time.monotonic()
    with Sandbox(postgres=2, kafka=1, fast=True) as sandbox:
        folder = Path(sandbox.folder) / "pipeline"
        run = CrashRun(folder, sandbox, seed=seed, victims=victims, load_s=options.seconds, say=console.print)
        score = asyncio.run(run.run(options.rounds))
    console.print(table(score, victims, seed, time.monotonic() - began))
    for note in score.notes:
        console.print(note, markup=False, highlight=False)
    return 0 if score.ok else 1


def table(score: Score, victims: list[str], seed: int, seconds: float) -> Table:
    load = f"{score.changes:,} changes, {score.judged:,} transactions judged"
    shown = Table(title=f"crash run, seed {seed}, {seconds:.0f} s, {load}")
    kills = {f"killed {victim}": score.kills[victim] for victim in victims}
    findings = {
        "lost": score.lost,
        "doubled": score.doubled,
        "regressed": score.regressed,
        "gave up": score.exits,
    }
    cells = {"rounds": score.rounds, **kills, **findings}
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_row(*(f"{n:,}" for n in cells.values()))
    return shown


if __name__ == "__main__":
    sys.exit(main())
