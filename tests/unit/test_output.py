"""What commands print, through pipes that take a little at a time, or whose reader goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from consumers.reconcile.history import History
from streamer.config import load

REPO = Path(__file__).parents[2]
SAMPLES = 15_000
PIECE = 4096
CONFIG = """
name: large
sources: {shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}}
targets: {copy: {kind: postgres, url: "postgresql://u@h/d"}}
flows: {mirror: {from: shop.public.*, to: copy.public}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run in its history whose report is more than a MB."""
    path = tmp_path_factory.mktemp("large") / "tailrace.yaml"
    path.write_text(CONFIG)
    history = History(load(path))
    history.open()
    try:
        samples = [{"kind": "missing", "key": [str(n)], "note": "x" * 40} for n in range(SAMPLES)]
        report = {"verdict": "drift", "tables": [{"samples": samples}]}
        history.begin("run-1", {}, ["mirror"], 1_000_000, fresh=True).end(report, 2_000_000)
    finally:
        history.close()
    return path


@contextmanager
def printing(config: Path, *, unbuffered: bool) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`tailrace reconcile history --json` into a pipe that somebody has set non-blocking, and its end."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "consumers", "reconcile", "history", "--json", "-c", str(config)],
        cwd=REPO,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
    )
    os.close(theirs)
    try:
        with process:
            yield process, ours
    finally:
        os.close(ours)


@pytest.mark.parametrize("unbuffered", [True, False])
def test_megabytes_of_json_arrive_whole_at_a_slow_reader(config: Path, unbuffered: bool) -> None:
    """A pipe holds 64 KiB: nearly every write finds it full."""
    found = bytearray()
    with printing(config, unbuffered=unbuffered) as (process, ours):
        while piece := os.read(ours, PIECE):
            found += piece
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(found) > 1_000_000
    (run,) = orjson.loads(bytes(found))
    assert len(run["report"]["tables"][0]["samples"]) == SAMPLES


@pytest.mark.thorough
def test_a_reader_that_has_seen_enough_is_no_error(config: Path) -> None:
    """`tailrace ... | head`"""
    with printing(config, unbuffered=False) as (process, ours):
        assert os.read(ours, PIECE)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), ours)  # the pipe has no reader any more
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
