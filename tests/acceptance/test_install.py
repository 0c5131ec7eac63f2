"""`make install` in a clean clone: an environment that works, and nothing else in the folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 600  # seconds with a warm package cache


def said(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_make_install_makes_the_environment_and_nothing_else(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    said("git", "clone", "--quiet", str(ROOT), str(clone), folder=tmp_path)
    said("make", "install", folder=clone)
    assert said("git", "status", "--porcelain", "--ignored", folder=clone) == "!! .venv/\n"
    assert said(".venv/bin/tailrace", "--version", folder=clone).startswith("tailrace ")
    assert "installing" not in said("make", "install", folder=clone), "it is made once"
