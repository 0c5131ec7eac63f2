"""`python -m tests.bench`: every benchmark one after another, one table, kept in docs/benchmarks.md.

A module bench_*.py that has `figures()` gives rows of the table; what the others print is kept below it.
`--full`: at the sizes that the floors are about. Exit 1 when a floor does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from tests.bench.figures import Figure, machine, markdown, show

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "benchmarks.md"
LIMIT_S = 900.0

INTRODUCTION = """# Benchmarks

`make bench` writes this page. All figures are of one run on one machine ({machine}), where the
servers, the pipeline and the load share the cores. Ratios carry over to other machines, absolute
figures do not. Rows have 8 columns: bigint key, two short texts, numeric(12,2), timestamptz,
boolean, integer, a text of 50 characters. Postgres runs without fsync, Kafka as one node.

{table}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="names of benchmarks, such as capture; all if none is given")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md as it is")
    parser.add_argument(
        "--full", action="store_true", help="those with FULL_ROWS run at that size: minutes more"
    )
    options = parser.parse_args()
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    if unknown := set(options.only) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    figures: list[Figure] = []
    outputs: dict[str, str] = {}
    for name in options.only or names:
        print(f"-- {name}", flush=True)
        module = importlib.import_module(f"tests.bench.bench_{name}")
        if hasattr(module, "figures"):
            rows = {"rows": module.FULL_ROWS} if options.full and hasattr(module, "FULL_ROWS") else {}
            figures += module.figures(**rows)
        else:
            outputs[name] = _run(f"tests.bench.bench_{name}")
            print(outputs[name], flush=True)
    show(figures)
    if not options.no_page and not options.only:
        PAGE.write_text(_page(figures, outputs), encoding="utf-8")
        print(f"written: {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    return 1 if any(figure.held is False for figure in figures) else 0


def _run(module: str) -> str:
    """What a benchmark without `figures()` prints."""
    done = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    return done.stdout.strip()


def _page(figures: list[Figure], outputs: dict[str, str]) -> str:
    page = INTRODUCTION.format(machine=machine(), table=markdown(figures))
    for name, output in outputs.items():
        page += f"\n## {name}\n\n```\n{output}\n```\n"
    return page


if __name__ == "__main__":
    sys.exit(main())
