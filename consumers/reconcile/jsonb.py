"""The text that PostgreSQL prints for a jsonb, of any JSON document. Pure.

Keys by length and then by bytes, the last of equal ones; numbers with the digits they are spelt with, and
without an exponent; one blank behind each comma and colon (manual, "JSON Types"). A document may be nested
deeper than Python's stack: what is open is kept in a list.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_CONTROL = re.compile(r'[\x00-\x1f"\\]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BLANKS = re.compile(r"[ \t\n\r]*")


def jsonb_text(document: str) -> str:
    """Raises ValueError: it is not JSON."""
    opened: list[_Array | _Object] = []
    at = _skip(document, 0)
    while True:
        sign = document[at : at + 1]
        if sign in _CONTAINERS:
            opened.append(_CONTAINERS[sign]())
            at = _skip(document, at + 1)
            if document[at : at + 1] != opened[-1].end:
                at = opened[-1].begin(document, at)
                continue
        else:
            scalar, at = _scan(document, at)
            if not opened:
                return _whole(document, at, _text(scalar))
            opened[-1].add(_text(scalar))
        at = _skip(document, at)
        while document[at : at + 1] == opened[-1].end:
            text = opened.pop().text()
            at = _skip(document, at + 1)
            if not opened:
                return _whole(document, at, text)
            opened[-1].add(text)
        if document[at : at + 1] != ",":
            raise ValueError(f"a comma or {opened[-1].end} is missing at character {at}")
        at = opened[-1].begin(document, _skip(document, at + 1))


class _Array:
    end = "]"

    def __init__(self) -> None:
        self._items: list[str] = []

    def begin(self, document: str, at: int) -> int:
        """Where the next item's value is."""
        return at

    def add(self, text: str) -> None:
        self._items.append(text)

    def text(self) -> str:
        return f"[{', '.join(self._items)}]"


class _Object:
    end = "}"

    def __init__(self) -> None:
        self._members: dict[str, str] = {}
        self._name = ""

    def begin(self, document: str, at: int) -> int:
        """Where the next member's value is."""
        name, at = _scan(document, at)
        at = _skip(document, at)
        if type(name) is not str or document[at : at + 1] != ":":
            raise ValueError(f"a name and a colon are missing at character {at}")
        self._name = name
        return _skip(document, at + 1)

    def add(self, text: str) -> None:
        self._members[self._name] = text

    def text(self) -> str:
        members = sorted(self._members.items(), key=lambda m: (len(m[0].encode()), m[0].encode()))
        return "{" + ", ".join([f"{_quoted(name)}: {text}" for name, text in members]) + "}"


_CONTAINERS: dict[str, type[_Array | _Object]] = {"[": _Array, "{": _Object}


class _Number(str):
    """A number as it is spelt."""

    __slots__ = ()


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_scan = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refuse).raw_decode


def _skip(document: str, at: int) -> int:
    found = _BLANKS.match(document, at)
    assert found is not None  # of any length
    return found.end()


def _whole(document: str, at: int, text: str) -> str:
    at = _skip(document, at)
    if at < len(document):
        raise ValueError(f"the document goes on at character {at}")
    return text


def _text(scalar: Any) -> str:
    kind = type(scalar)
    if kind is str:
        return _quoted(scalar)
    if kind is _Number:
        return _number(scalar)
    return {True: "true", False: "false", None: "null"}[scalar]


def _number(spelt: str) -> str:
    number = Decimal(spelt)
    if not number:
        number = abs(number)  # a numeric has one zero
    return format(number, "f")


def _quoted(text: str) -> str:
    return '"' + _CONTROL.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", text) + '"'
