"""What a job runs: a command of Tailrace, or a function of the user's own, each in a process of its own.

A job's `args` are the command's options, named as on the command line (`limit_rate: 1000/s`,
`repair: true`), or the function's keyword arguments. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from consumers.schedule.plan import Outcome, Planned
from streamer.config import Config
from streamer.errors import EXIT_FINDING, EXIT_OK, EXIT_REPAIRED

TAILRACE = (sys.executable, "-m", "consumers")
LAUNCH = (sys.executable, "-m", "consumers.schedule.launch")


def command(config: Config, plan: Planned, parent: int) -> list[str]:
    """`parent`: the process with which it ends, however that ends."""
    job = plan.job
    file = ["-c", str(config.path)]
    launch = [*LAUNCH, str(parent)]
    if job.exec is not None:
        folder = str(Path(config.base))
        return [*launch, "function", job.exec, folder, plan.name, orjson.dumps(job.args).decode()]
    words: list[str] = []
    if job.reconcile is not None:
        words = ["reconcile", job.reconcile]
    elif job.backfill is not None:
        source, _, table = job.backfill.partition(".")
        words = ["backfill", source, table]
    elif job.replay is not None:
        words = ["replay", job.replay]
    return [*launch, "command", *TAILRACE, *words, *options(job.args), *file]


def options(args: Mapping[str, Any]) -> list[str]:
    """{limit_rate: 1000/s, repair: true, values: false} -> --limit-rate 1000/s --repair"""
    words: list[str] = []
    for name, value in args.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            for each in value:
                words += [option, str(each)]
        elif value is not False and value is not None:
            words += [option, str(value)]
    return words


def outcome(plan: Planned, exit_code: int) -> Outcome:
    if exit_code == EXIT_OK:
        return Outcome.OK
    if plan.job.reconcile is not None and exit_code in (EXIT_FINDING, EXIT_REPAIRED):
        return Outcome.OK if exit_code == EXIT_REPAIRED else Outcome.FINDING
    return Outcome.FAILED
