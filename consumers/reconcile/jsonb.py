"""The text that PostgreSQL prints for a jsonb, of any JSON document. Pure.

Keys by length and then by bytes, the last of equal ones; numbers with the digits they are spelt with, and
without an exponent; one blank behind each comma and colon (manual, "JSON Types").
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_CONTROL = re.compile(r'[\x00-\x1f"\\]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def jsonb_text(document: str) -> str:
    """Raises ValueError: it is not JSON."""
    return _text(json.loads(document, parse_float=_Number, parse_int=_Number, parse_constant=_refuse))


class _Number(str):
    """A number as it is spelt."""

    __slots__ = ()


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _text(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is _Number:
        return _number(value)
    if kind is dict:
        members = sorted(value.items(), key=lambda member: (len(member[0].encode()), member[0].encode()))
        return "{" + ", ".join([f"{_quoted(name)}: {_text(item)}" for name, item in members]) + "}"
    if kind is list:
        return "[" + ", ".join(map(_text, value)) + "]"
    return {True: "true", False: "false", None: "null"}[value]


def _number(spelt: str) -> str:
    number = Decimal(spelt)
    if not number:
        number = abs(number)  # a numeric has one zero
    return format(number, "f")


def _quoted(text: str) -> str:
    return '"' + _CONTROL.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", text) + '"'
