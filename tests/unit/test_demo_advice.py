"""What the demo says to type next is what works in the reader's folder."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from consumers.demo.command import advice, started_as
from consumers.demo.demo import Running
from consumers.demo.outcome import Outcome
from consumers.demo.screen import Screen

HERE = Path("/srv/ann/tail race")


@pytest.mark.parametrize(
    ("argv0", "on_path", "shown"),
    [
        (".venv/bin/tailrace", None, ".venv/bin/tailrace"),
        (".venv/bin/tailrace", "/usr/bin/tailrace", ".venv/bin/tailrace"),
        ("/srv/ann/tail race/.venv/bin/tailrace", None, ".venv/bin/tailrace"),
        ("/usr/bin/tailrace", "/usr/bin/tailrace", "tailrace"),
        ("/opt/my tools/tailrace", None, "'/opt/my tools/tailrace'"),
        ("/opt/lib/consumers/__main__.py", None, "tailrace"),
    ],
)
def test_the_command_is_named_as_it_was_started(argv0: str, on_path: str | None, shown: str) -> None:
    assert started_as(argv0, HERE, on_path) == shown


def test_what_is_left_running_is_ended_by_one_command_that_is_explained() -> None:
    folder = Path("/tmp/tailrace 1")
    urls = {"source": "postgresql://s", "target": "postgresql://t", "kafka": "127.0.0.1:9"}
    kept = Running(urls, folder, folder / "tailrace.yaml", folder / "tailrace.log", 7, 8)
    lines = advice(kept, ".venv/bin/tailrace")
    assert lines[-2] == "stop all of it, both servers, Kafka and `tailrace run`, and remove their folder:"
    assert lines[-1] == ".venv/bin/tailrace sandbox down --dir '/tmp/tailrace 1'"
    assert ".venv/bin/tailrace status --watch -c '/tmp/tailrace 1/tailrace.yaml'" in lines
    assert set(urls.values()) <= set(lines)
    assert not any("kill" in line for line in lines)


def test_it_stands_below_the_box_and_no_line_is_broken() -> None:
    """Each is to be copied."""
    url = (
        "postgresql://tailrace:a-long-password@127.0.0.1:54321/a_database_with_a_rather_long_name_of_its_own"
    )
    advice = (
        "source, target and Kafka:",
        url,
        f".venv/bin/tailrace status --watch -c /tmp/{'x' * 90}/t.yaml",
    )
    shown = io.StringIO()
    Screen(Console(file=shown, width=80)).verdict(Outcome(seed=1, seconds=20.0, advice=advice))
    lines = shown.getvalue().splitlines()
    assert lines[-3:] == list(advice)
    assert lines[-4].startswith("╰")
