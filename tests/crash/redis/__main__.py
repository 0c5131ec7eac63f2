"""`python -m tests.crash.redis --rounds 20`: faults of a Redis source; exit 1 on any finding."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamer.sandbox import Sandbox
from tests.crash.command import begin, parser_of, table, tell
from tests.crash.redis.faults import FAULTS
from tests.crash.redis.run import BIG_MEMBERS, EQUAL_S, LOAD_S, OPS_PER_S, RedisCrashRun, Score

TABLE_WIDTH = 150  # characters; also where the output goes to a file


def main() -> int:
    parser = parser_of("tests.crash.redis", __doc__, "faults", FAULTS, LOAD_S)
    parser.add_argument("--ops", type=int, default=OPS_PER_S, help="commands a second")
    parser.add_argument("--members", type=int, default=BIG_MEMBERS, help="of the big sorted set")
    parser.add_argument(
        "--within", type=float, default=EQUAL_S, help="seconds from the last fault to equality"
    )
    options = parser.parse_args()
    console = Console(width=TABLE_WIDTH)
    seed, faults = begin(options, "faults", console)
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
    shown = tables(score, faults, seed, time.monotonic() - began_s)
    return tell(console, shown, score.notes, ok=score.ok)


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
        table("faults", {name: score.faults[name] for name in faults}),
        table(f"gaps said: {score.gaps.total():,}", dict(sorted(score.gaps.items()))),
        table(f"crash run of a Redis source, seed {seed}, {seconds:.0f} s", findings),
    ]


if __name__ == "__main__":
    sys.exit(main())
