"""Every command as a process of its own, with no module there that another test has imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from consumers.cli import app
from tests.harness.tiers import corners

ROOT = Path(__file__).parents[2]
OTHERWISE = {"demo", "init", "sandbox up", "sandbox down"}  # they read no file, or make one
GIVEN = {"config rollback": ["--all"], "dead-letters discard": ["--reason", "x"], "replay": ["--from-start"]}


def commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """(name, words for all that it must be given)"""
    for name, below in group.commands.items():
        if isinstance(below, typer.core.TyperGroup):
            yield from commands(below, (*path, name))
        else:
            words = ["x" for p in below.params if p.param_type_name == "argument" and p.required]
            yield " ".join((*path, name)), words


ROOT_COMMAND = typer.main.get_command(app)
assert isinstance(ROOT_COMMAND, typer.core.TyperGroup)
COMMANDS = [each for each in commands(ROOT_COMMAND) if each[0] not in OTHERWISE]


@pytest.mark.parametrize(("name", "words"), corners(COMMANDS, "reconcile", "serve"))
def test_a_file_that_is_not_there_is_said_by_a_process_alone(
    name: str, words: list[str], tmp_path: Path
) -> None:
    """Which has imported all of the command's work, and nothing else, before it looks for the file."""
    missing = tmp_path / "tailrace.yaml"
    command = [sys.executable, "-m", "consumers", *name.split(), *words, *GIVEN.get(name, [])]
    ended = subprocess.run(
        [*command, "-c", str(missing)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (64, ""), ended.stderr
    assert str(missing) in ended.stderr
    assert "Traceback" not in ended.stderr
