"""`tailrace check`: one line and an exit code, for cron or a probe."""

from __future__ import annotations

from pathlib import Path

import typer
import uvloop

from consumers.commands.show import read_here
from consumers.views.check import beyond, well
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import load
from streamer.config.base import no_such
from streamer.config.units import option_value, parse_duration
from streamer.errors import EXIT_FINDING, EXIT_OK

COMMAND = "tailrace check"


def check(path: Path, flows: list[str], *, max_lag: str, max_proof_age: str, as_json: bool) -> int:
    """The exit code: 1 when a flow is not well, or beyond a limit."""
    config = load(path)
    for name in flows:
        if name not in config.flows:
            raise no_such("flow", name, config.flows, config.path)
    lag_s = option_value(parse_duration, max_lag, "--max-lag", COMMAND) if max_lag else None
    age_s = option_value(parse_duration, max_proof_age, "--max-proof-age", COMMAND) if max_proof_age else None
    status = uvloop.run(read_here(config, brokers_of(config)))
    problems = beyond(status, max_lag_s=lag_s, max_proof_age_s=age_s, flows=flows)
    if not flows and not problems and not status.is_well:
        problems = [finding.text.splitlines()[0] for finding in status.findings if finding.counts]
    if as_json:
        print_json(
            {"ok": not problems, "verdict": _line(problems) or well(status, flows), "problems": problems}
        )
    elif problems:
        typer.echo("\n".join(problems))
    else:
        typer.echo(well(status, flows))
    return EXIT_FINDING if problems else EXIT_OK


def _line(problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""
