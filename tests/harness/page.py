"""The fenced blocks of a documentation page, so that tests run what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path, heading: str) -> list[Block]:
    """Of the section under a heading, as it stands on the page, to the next one of its level or above."""
    text = page.read_text(encoding="utf-8")
    level = len(heading) - len(heading.lstrip("#"))
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    bare = _FENCE.sub(lambda found: " " * len(found[0]), text)  # comments of code are no headings
    end = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(bare, start)
    return [Block(*found) for found in _FENCE.findall(text[start : end.start() if end else len(text)])]


def block(page: Path, heading: str, language: str) -> str:
    """The section's only block in a language."""
    [found] = [block.text for block in blocks(page, heading) if block.language == language]
    return found
