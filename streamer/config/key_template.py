"""Templates of Redis keys and members: `user:{id}`, `board:{period}`. Pure.

Owns their grammar and how values are filled in: `{column}` names a column of the target, `{{` and `}}` are
braces. Two different rows never give one text: where something follows a column, `%` and the first character
of what follows are percent-encoded in its values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
OWN_PREFIX = "_tailrace"
ESCAPES = "%0123456789"  # each is in the escape of % or of itself: no value can end before it


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """`literals` stand around `names`: one more of them."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return self.literals[0]

    @property
    def shape(self) -> str:
        """Equal for two templates that can give the same key by their form."""
        return "{}".join(self.literals)

    def tail(self, values: Sequence[str]) -> str:
        """The key without `prefix`; one value a name."""
        if len(values) == 1:
            return values[0] + self.literals[1]
        parts = []
        last = len(values) - 1
        for at, value in enumerate(values):
            after = self.literals[at + 1]
            parts.append(value if at == last else _encoded(value, after[0]))
            parts.append(after)
        return "".join(parts)

    def values(self, text: str) -> list[str] | None:
        """What was filled in for this text; None: no values give it."""
        if not text.startswith(self.prefix):
            return None
        rest = text[len(self.prefix) :]
        found: list[str] = []
        for at in range(len(self.names)):
            after = self.literals[at + 1]
            if at == len(self.names) - 1:
                if not rest.endswith(after):
                    return None
                found.append(rest[: len(rest) - len(after)])
                rest = ""
                continue
            value, _, _ = rest.partition(after[0])
            rest = rest[len(value) :]
            if not rest.startswith(after):
                return None
            rest = rest[len(after) :]
            found.append(unquote(value, errors="replace"))
        return found if not rest and self.prefix + self.tail(found) == text else None


def _encoded(value: str, stop: str) -> str:
    if "%" in value:
        value = value.replace("%", "%25")
    if stop in value and stop != "%":
        value = value.replace(stop, "".join(f"%{byte:02X}" for byte in stop.encode()))
    return value


def split_template(text: str) -> tuple[list[str], list[str]]:
    """The literals around the names, one more of them. Raises ValueError with a sentence."""
    literals = [""]
    names: list[str] = []
    at = 0
    for found in _PART.finditer(text):
        literals[-1] += text[at : found.start()]
        at = found.end()
        if found[0] in ("{{", "}}"):
            literals[-1] += found[0][0]
        elif found[1] is None:
            raise ValueError(f"has a {found[0]!r} that belongs to no column")
        else:
            names.append(found[1])
            literals.append("")
    literals[-1] += text[at:]
    return literals, names


def parse_template(text: str) -> KeyTemplate:
    """Raises ValueError with a sentence."""
    literals, names = split_template(text)
    for at, between in enumerate(literals[1:-1]):
        if not between:
            raise ValueError(f"has nothing between {{{names[at]}}} and {{{names[at + 1]}}}")
        if between[0] in ESCAPES:
            raise ValueError(
                f"has {between[0]!r} behind {{{names[at]}}}, which is part of an escape there: put another"
                " character, such as ':', first"
            )
    if literals[0].startswith(OWN_PREFIX):
        raise ValueError(f"begins with {OWN_PREFIX}, which is Tailrace's own")
    return KeyTemplate(tuple(literals), tuple(names))


def joined(prefix: str, names: Sequence[str], separator: str = ":") -> KeyTemplate:
    """`prefix` and the columns behind it."""
    if not names:
        return KeyTemplate((prefix,), ())
    return KeyTemplate((prefix, *[separator] * (len(names) - 1), ""), tuple(names))
