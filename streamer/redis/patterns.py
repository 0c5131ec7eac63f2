"""Key patterns with named parts: which keys they fit, and which bytes each part is. Pure, no I/O.

    pattern  = (literal | part)+
    part     = "{" name "}"       one or more bytes other than ':'
             | "{" name "*}"      one or more bytes, ':' included
    literal  = any text; "{{" and "}}" are braces; everything else is itself, glob characters too

The text of a literal is UTF-8. A part takes as few bytes as it can (`{a}-{b}` of `x-y-z` is a = x,
b = y-z), so a key has one reading, and formatting what was read gives the key again. Two parts need
a literal between them: nothing would say where the first ends.

A part does not take ':' because `user:{id}` and `user:{id}:profile` are two tables, not one.

Bytes become text as follows (`text_of`), without loss: UTF-8 stands as it is; what is not UTF-8,
holds a NUL (no target's text can) or begins with `\\x` is `\\x` and the hex digits of its bytes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

PARTS_LIMIT = 8  # of a pattern; each adds a power of the key's length to the worst match
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_PART = re.compile(r"\{([^{}]*)\}")
_GLOB = re.compile(rb"([*?\[\]\\])")
_OTHER_RUN = b"\xff"  # stands for the other pattern's "*": no literal has it, being UTF-8
_HEX = "\\x"
_COLON = 0x3A
_NOT_COLON = -1  # tokens of _steps beside bytes
_ANY = -2


class PatternError(ValueError):
    """A pattern that does not follow the grammar; its text says why."""


class Part(NamedTuple):
    name: str
    any: bool  # ':' included


class KeyPattern:
    """`names` are the parts' in order; `glob` is for SCAN MATCH and PSUBSCRIBE, and fits no key less."""

    __slots__ = ("_fullmatch", "expression", "glob", "names", "text", "tokens")

    def __init__(self, text: str) -> None:
        """Raises PatternError."""
        self.text = text
        self.tokens = _tokens(text)
        self.names = tuple(token.name for token in self.tokens if isinstance(token, Part))
        self.glob = b"".join(b"*" if isinstance(t, Part) else glob_escape(t) for t in self.tokens)
        self.expression = b"".join(map(_expression, self.tokens))
        self._fullmatch = re.compile(self.expression, re.DOTALL).fullmatch

    def match(self, key: bytes) -> tuple[bytes, ...] | None:
        """The parts' bytes; None: the key does not fit."""
        found = self._fullmatch(key)
        return found.groups() if found is not None else None

    def format(self, values: Sequence[bytes]) -> bytes:
        """The key of these parts. It may not read back as them: see `key_of`."""
        given = iter(values)
        return b"".join(next(given) if isinstance(token, Part) else token for token in self.tokens)

    def key_of(self, values: Sequence[bytes]) -> bytes | None:
        """The key that reads as these parts; None: there is none (a value holds ':' or is empty)."""
        key = self.format(values)
        return key if self.match(key) == tuple(values) else None


def _tokens(text: str) -> list[bytes | Part]:
    tokens: list[bytes | Part] = []
    literal = ""
    at = 0
    while at < len(text):
        if text[at : at + 2] in ("{{", "}}"):
            literal += text[at]
            at += 2
        elif text[at] == "}":
            raise PatternError(f"has a '}}' without its '{{' at character {at + 1}; a brace itself is }}}}")
        elif text[at] == "{":
            found = _PART.match(text, at)
            if found is None:
                what = f"has a '{{' without its '}}' at character {at + 1}"
                raise PatternError(f"{what}; a brace itself is {{{{")
            if literal:
                tokens.append(literal.encode())
                literal = ""
            elif tokens:
                raise PatternError(f"has nothing between two parts, at {found[0]}: put a literal there")
            tokens.append(_part(found[1]))
            at = found.end()
        else:
            literal += text[at]
            at += 1
    if literal:
        tokens.append(literal.encode())
    names = [token.name for token in tokens if isinstance(token, Part)]
    if not tokens:
        raise PatternError("is empty")
    if len(names) > PARTS_LIMIT:
        raise PatternError(f"has {len(names)} parts, more than {PARTS_LIMIT}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PatternError(f"has the part {{{twice}}} twice")
    return tokens


def _part(inside: str) -> Part:
    name = inside.removesuffix("*")
    if NAME.fullmatch(name) is None:
        raise PatternError(f"has the part {{{inside}}}: a part's name is letters, digits and '_'")
    return Part(name, inside.endswith("*"))


def _expression(token: bytes | Part) -> bytes:
    if isinstance(token, Part):
        return b"(.+?)" if token.any else b"([^:]+?)"
    return re.escape(token)


def glob_escape(literal: bytes) -> bytes:
    """Bytes as themselves in Redis's glob patterns."""
    return _GLOB.sub(rb"\\\1", literal)


def glob_covers(one: KeyPattern, other: KeyPattern) -> bool:
    """Whether the glob of `one` fits every key that the glob of `other` does: then one of them is enough."""
    any_run = b".*".join(re.escape(t) for t in _literals(one))
    return re.fullmatch(any_run, _OTHER_RUN.join(_literals(other)), re.DOTALL) is not None


def _literals(pattern: KeyPattern) -> list[bytes]:
    """What stands before, between and behind the parts."""
    found = [b""]
    for token in pattern.tokens:
        if isinstance(token, Part):
            found.append(b"")
        else:
            found[-1] = token
    return found


def overlap(one: KeyPattern, other: KeyPattern) -> bool:
    """Whether some key fits both. Exact: a walk through both patterns at once."""
    left, right = _steps(one), _steps(other)
    queue, seen = deque([(0, 0)]), {(0, 0)}
    while queue:
        i, j = queue.popleft()
        if i == len(left) and j == len(right):
            return True
        for place in _moves(left, i, right, j):
            if place not in seen:
                seen.add(place)
                queue.append(place)
    return False


class _Step(NamedTuple):
    what: int  # a byte, _NOT_COLON or _ANY
    repeats: bool  # none or more of it, else one


def _steps(pattern: KeyPattern) -> list[_Step]:
    steps: list[_Step] = []
    for token in pattern.tokens:
        if isinstance(token, Part):
            what = _ANY if token.any else _NOT_COLON
            steps += (_Step(what, False), _Step(what, True))
        else:
            steps += (_Step(byte, False) for byte in token)
    return steps


def _moves(left: list[_Step], i: int, right: list[_Step], j: int) -> list[tuple[int, int]]:
    one = left[i] if i < len(left) else None
    other = right[j] if j < len(right) else None
    moves = []
    if one is not None and one.repeats:
        moves.append((i + 1, j))
    if other is not None and other.repeats:
        moves.append((i, j + 1))
    if one is not None and other is not None and _meet(one.what, other.what):
        moves.append((i if one.repeats else i + 1, j if other.repeats else j + 1))
    return moves


def _meet(one: int, other: int) -> bool:
    if one >= 0 and other >= 0:
        return one == other
    return not (_COLON in (one, other) and _NOT_COLON in (one, other))


# Bytes as text


def text_of(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return _HEX + raw.hex()
    return _HEX + raw.hex() if text[:2] == _HEX or "\0" in text else text


def bytes_of(text: str) -> bytes:
    """The bytes whose `text_of` this is. Raises ValueError for a text that `text_of` never gives."""
    return bytes.fromhex(text[2:]) if text[:2] == _HEX else text.encode()
