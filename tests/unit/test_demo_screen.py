"""What the demo shows while it runs and what it leaves behind; what `make demo` makes of it."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers.demo.screen import Screen
from consumers.demo.tally import Tally
from streamer.status import StatusRecord

REPO = Path(__file__).resolve().parents[2]


def record(kind: str, **detail: Any) -> StatusRecord:
    return StatusRecord(
        part=f"{kind}:shop", kind=kind, name="shop", instance="here-7", pid=7, host="here",
        started_us=1, at_us=1, state="streaming", detail=detail,
    )  # fmt: skip


def test_the_live_table_shows_captured_applied_and_lag_of_each_flow() -> None:
    tally = Tally({"orders": "shop.orders", "customers": "shop.customers"})
    counts = {"shop.orders": {"captured": 12_345}, "shop.customers": {"captured": 67}}
    flows = {
        "orders": {"applied": 12_001, "lag_records": 344, "lag_s": 0.25},
        "customers": {"applied": 67, "lag_records": 0, "lag_s": 0.0},
    }
    tally.take([record("capture", tables=counts), record("apply", flows=flows)])
    shown = io.StringIO()
    with Screen(Console(file=shown, force_terminal=True, width=100)) as screen:
        screen.show(tally, "the shop is at work")
    rows = [" ".join(line.split()) for line in shown.getvalue().replace("│", " ").splitlines()]
    assert any("captured" in row and "applied" in row and "lag, records" in row for row in rows)
    assert "orders 12,345 12,001 344 0.25" in rows
    assert "customers 67 67 0 0.00" in rows


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize(("keep", "given"), [("", "demo"), ("KEEP=1", "demo --keep"), ("KEEP=0", "demo")])
def test_make_demo_passes_on_the_option_and_fails_with_the_demo(
    tmp_path: Path, code: int, keep: str, given: str
) -> None:
    program = tmp_path / "bin" / "tailrace"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    program.chmod(0o755)
    made = subprocess.run(
        ["make", "--no-print-directory", "-o", "install", "demo", f"VENV={tmp_path}", *filter(None, [keep])],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stdout.strip() == given
    assert (made.returncode != 0) is (code != 0)
