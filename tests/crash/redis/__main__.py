"""`python -m tests.crash.redis --rounds 20`: faults of a Redis source; exit 1 on any finding."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamer.sandbox import Sandbox
from tests.crash.redis.faults import FAULTS
from tests.crash.redis.run import BIG_MEMBERS, EQUAL_S, LOAD_S, OPS_PER_S, RedisCrashRun, Score

TABLE_WIDTH = 150  # characters; also where the output goes to a file


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.crash.redis", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=None, help="plan of the run; drawn and printed if not given"
    )
    parser.add_argument("--faults", default=",".join(FAULTS), help="any of %(default)s")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help="load a round")
    parser.add_argument("--ops", type=int, default=OPS_PER_S, help="commands a second")
    parser.add_argument("--members", type=int, default=BIG_MEMBERS, help="of the big sorted set")
    parser.add_argument(
        "--within", type=float, default=EQUAL_S, help="seconds from the last fault to equality"
    )
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    faults = [f.strip() for f in options.faults.split(",") if f.strip()]
    console = Console(width=TABLE_WIDTH)
    console.print(f"seed {seed}, {options.rounds} rounds, faults {', '.join(faults)}", highlight=False)
    began_s = time.monotonic()
    with Sandbox(postgres=0, valkey=1, kafka=1, fast=True) as sandbox:
        run = RedisCrashRun(
            Path(sandbox.folder) / "pipeline",
            sandbox.valkey[0],
            sandbox.kafka.bootstrap,
            seed=seed,
            kafka_server=sandbox.kafka,
            faults=faults,
            load_s=options.seconds,
            ops_per_s=options.ops,
            big_members=options.members,
            within_s=options.within,
            say=lambda text: console.print(text, highlight=False),
        )
        score = asyncio.run(run.run(options.rounds))
    for shown in tables(score, faults, seed, time.monotonic() - began_s):
        console.print(shown)
    for note in score.notes:
        console.print(note, markup=False, highlight=False)
    return 0 if score.ok else 1


def tables(score: Score, faults: list[str], seed: int, seconds: float) -> list[Table]:
    rate = score.ops / max(1.0, score.writing_s)
    findings = {
        "rounds": score.rounds,
        "ops": score.ops,
        "ops/s": round(rate),
        "events": score.events,
        "rows": score.rows,
        "lost": score.lost,
        "stale": score.stale,
        "regressed": score.regressed,
        "doubled": score.doubled,
        "repeated": score.repeated,
        "gave up": score.exits,
        "late": score.late,
        "max s to equal": round(score.equal_s, 1),
    }
    return [
        _table("faults", {name: score.faults[name] for name in faults}),
        _table(f"gaps said: {score.gaps.total():,}", dict(sorted(score.gaps.items()))),
        _table(f"crash run of a Redis source, seed {seed}, {seconds:.0f} s", findings),
    ]


def _table(title: str, cells: Mapping[str, float]) -> Table:
    shown = Table(title=title)
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_row(*(f"{n:,}" for n in cells.values()))
    return shown


if __name__ == "__main__":
    sys.exit(main())
