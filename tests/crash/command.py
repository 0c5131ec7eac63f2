"""What both crash runs share: options, the seed, and how a score is shown."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

SEED_BELOW = 10**6  # short enough to be typed again


def parser_of(
    prog: str, doc: str | None, kinds: str, known: Iterable[str], load_s: float
) -> argparse.ArgumentParser:
    """`kinds`: what the faults are called."""
    parser = argparse.ArgumentParser(prog=prog, description=doc)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="plan of the run; drawn and printed if not given")
    parser.add_argument(f"--{kinds}", dest="kinds", default=",".join(known), help="any of %(default)s")
    parser.add_argument("--seconds", type=float, default=load_s, help="load a round")
    return parser


def begin(options: argparse.Namespace, kinds: str, console: Console) -> tuple[int, list[str]]:
    """The seed and the kinds that are meant, said before anything starts."""
    seed = options.seed if options.seed is not None else secrets.randbelow(SEED_BELOW)
    chosen = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    console.print(f"seed {seed}, {options.rounds} rounds, {kinds} {', '.join(chosen)}", highlight=False)
    return seed, chosen


def table(title: str, cells: Mapping[str, float]) -> Table:
    shown = Table(title=title)
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_row(*(f"{n:,}" for n in cells.values()))
    return shown


def tell(console: Console, tables: Iterable[Table], notes: Iterable[str], *, ok: bool) -> int:
    """The exit code."""
    for shown in tables:
        console.print(shown)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    return 0 if ok else 1
