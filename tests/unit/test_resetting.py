"""Every advice to reset names all of its steps: stop, reset without a question, start."""

from __future__ import annotations

import re
from pathlib import Path

import streamer
from streamer.resetting import reset_fix, reset_steps

ROOT = Path(streamer.__file__).parent.parent
SPELLS_IT = {
    "streamer/resetting.py",
    "streamer/commands/capture.py",
    "consumers/commands/reset.py",
}  # the steps themselves, and the command's own question


def test_the_steps_in_their_order() -> None:
    steps = re.findall(r"`([^`]+)`", reset_steps("shop", above=7))
    assert steps == ["tailrace run", "tailrace capture shop", "tailrace reset shop --above 7 --yes"]
    assert reset_steps("shop").endswith("start again what has stopped")
    assert reset_fix("shop").startswith(reset_steps("shop"))


def test_no_message_advises_a_part_of_them() -> None:
    """Of a source; a processor has a reset of its own, with other steps."""
    for package in ("streamer", "consumers"):
        for path in (ROOT / package).rglob("*.py"):
            if path.relative_to(ROOT).as_posix() not in SPELLS_IT and path.parent.name != "processors":
                text = re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8"))
                assert not re.search(r"`tailrace reset [^`]", text), path
