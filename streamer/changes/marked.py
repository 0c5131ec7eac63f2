"""Whether an index of a target leaves out rows that a soft delete has marked. Pure.

A marked row keeps its values. Where another unique index holds it, a valid change that takes such a value
would be refused for good; an index that is partial, `WHERE deleted_at IS NULL`, has live rows alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_OR = re.compile(r"\s+or\s+", re.IGNORECASE)


def holds_marked(
    columns: Collection[str], sent: Collection[str], key: Collection[str], predicate: str, soft: str
) -> bool:
    """Whether a unique index makes a marked row stand in the way of another one. `columns`: that it is on or
    depends on; `sent`: by the flow; `key`: those that find a row, of which no two are equal anyway."""
    if not set(columns) & set(sent) or set(columns) >= set(key):
        return False
    return not leaves_out_marked(predicate, soft)


def leaves_out_marked(predicate: str, column: str) -> bool:
    """`predicate`: of the index, as the database prints it; empty: it has none. Doubt is no."""
    parts = list(_top_level(_bare(predicate)))
    text = "".join(part for part, inside in parts if not inside)
    if _OR.search(text):
        return False
    return any(_is_null(condition, column) for condition in _conditions(parts))


def _is_null(condition: str, column: str) -> bool:
    found = re.fullmatch(r"(.+?)\s+is\s+null", _bare(condition), re.IGNORECASE | re.DOTALL)
    if found is None:
        return False
    name = found[1].strip()
    for first, last in ('""', "``", "[]"):
        if name[:1] == first and name[-1:] == last:
            return name[1:-1].replace(last * 2, last).lower() == column.lower()
    return name.lower() == column.lower()


def _bare(text: str) -> str:
    """Without parentheses around all of it."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")") and _closes_last(text):
        text = text[1:-1].strip()
    return text


def _closes_last(text: str) -> bool:
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return at == len(text) - 1
    return False


def _top_level(text: str) -> Iterable[tuple[str, bool]]:
    """(piece, whether it stands inside of parentheses or quotes)."""
    at = depth = 0
    for found in re.finditer(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[()]", text):
        if depth == 0:
            yield text[at : found.start()], False
            at = found.start()
        depth += (found[0] == "(") - (found[0] == ")")
        if depth == 0:
            yield text[at : found.end()], True
            at = found.end()
    yield text[at:], False


def _conditions(parts: Iterable[tuple[str, bool]]) -> list[str]:
    """What stands between ANDs."""
    found = [""]
    for part, inside in parts:
        first, *others = [part] if inside else _AND.split(part)
        found[-1] += first
        found += others
    return found
