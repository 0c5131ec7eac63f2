"""Patterns of names: `*` is any run of characters, `?` is one; everything else is itself.

A name in parts (`schema.table`, `source.schema.table`) is compared part by part, so that `*` never
reaches over a dot of the pattern; what is left over of the dots belongs to the last part.
"""

from __future__ import annotations

import re
from functools import cache

from streamer.changes.topics import clean

_WILD = re.compile(r"[*?]")


def is_pattern(text: str) -> bool:
    return _WILD.search(text) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_regex(pattern, "."), re.DOTALL)


def _regex(pattern: str, any_: str) -> str:
    """`any_`: what a wildcard's character may be."""
    return "".join(f"{any_}*" if c == "*" else any_ if c == "?" else re.escape(c) for c in pattern)


def fits(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


def fits_parts(pattern: str, name: tuple[str, ...]) -> bool:
    """Whether `schema.table` as a pattern fits (schema, table); same for three parts."""
    parts = pattern.split(".", len(name) - 1)
    return len(parts) == len(name) and all(fits(p, n) for p, n in zip(parts, name, strict=True))


@cache
def clean_pattern(pattern: str) -> str:
    """The pattern for cleaned names: what a topic's name cannot hold becomes `_`."""
    return "".join(c if c in "*?" else clean(c) for c in pattern)


@cache
def _of_topics(pattern: str) -> re.Pattern[str]:
    *heads, last = clean_pattern(pattern).split(".", 2)
    return re.compile(r"\.".join([*(_regex(head, "[^.]") for head in heads), _regex(last, ".")]), re.DOTALL)


def fits_topic(pattern: str, topic: str) -> bool:
    """Whether `source.schema.table` or `source.entity` as a pattern fits a topic, whose name is cleaned."""
    return _of_topics(pattern).fullmatch(topic) is not None


def may_meet(one: str, other: str) -> bool:
    """Whether some name fits both patterns."""
    if not is_pattern(other):
        return fits(one, other) if is_pattern(one) else one == other
    if not is_pattern(one):
        return fits(other, one)

    @cache
    def meet(i: int, j: int) -> bool:
        if i == len(one) and j == len(other):
            return True
        if i < len(one) and one[i] == "*":
            return meet(i + 1, j) or (j < len(other) and meet(i, j + 1))
        if j < len(other) and other[j] == "*":
            return meet(i, j + 1) or (i < len(one) and meet(i + 1, j))
        if i == len(one) or j == len(other):
            return False
        return (one[i] == other[j] or "?" in (one[i], other[j])) and meet(i + 1, j + 1)

    return meet(0, 0)
