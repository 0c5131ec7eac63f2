"""Keys of rows as people write them, beside the key's bytes in Kafka. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

_SIMPLE = re.compile(r"[ !#-\[\]-~]*").fullmatch  # one spelling in JSON: no quote, backslash or escape
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})").fullmatch


def spellings(key: bytes) -> set[str]:
    """The key as in Kafka; and the value alone of a key of one column."""
    text = key.decode(errors="replace")
    found = {text}
    try:
        value = orjson.loads(key)
    except ValueError:
        return found
    found.add(orjson.dumps(value).decode())
    if isinstance(value, dict) and len(value) == 1:
        (alone,) = value.values()
        found |= {orjson.dumps(alone).decode(), str(alone)}
    return found


class WantedKey:
    """A key as it was written on the command line: JSON as in Kafka, in any order of its columns, or the
    value alone of a key of one column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._columns: dict[str, Any] | None = None
        try:
            value = orjson.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            self._columns = value

    def fits(self, key: bytes | None) -> bool:
        if key is None:
            return False
        if self.text in spellings(key):
            return True
        if self._columns is None:
            return False
        try:
            return bool(orjson.loads(key) == self._columns)
        except ValueError:
            return False

    def bytes_like(self, sample: bytes) -> bytes | None:
        """The key's bytes in Kafka, where another one of its topic leaves no doubt about them: its columns,
        their order, and values that JSON has one spelling for."""
        try:
            columns = orjson.loads(sample)
        except ValueError:
            return None
        if not isinstance(columns, dict) or not columns:
            return None
        given = self._columns
        if given is None and len(columns) == 1:
            given = dict.fromkeys(columns, self.text)
        if given is None or given.keys() != columns.keys():
            return None
        values = {}
        for name, known in columns.items():
            value = _like(given[name], known)
            if value is None:
                return None
            values[name] = value
        return orjson.dumps(values)


class WantedKeys:
    """Many of them, each known in every topic that it may be in."""

    def __init__(self, found: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        """`found`: of each key, its columns as events of a topic have them."""
        self._number = len(found)
        self._forms = {(topic, _sorted(columns)) for key in found for topic, columns in key.items()}

    def __len__(self) -> int:
        return self._number

    def fits(self, topic: str, key: bytes | None) -> bool:
        if key is None:
            return False
        try:
            return (topic, _sorted(orjson.loads(key))) in self._forms
        except ValueError:
            return False


def _sorted(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _like(value: Any, known: Any) -> int | str | None:
    """The value in the type of the known one; None: there may be several spellings."""
    if isinstance(known, bool) or isinstance(value, bool):
        return None
    if isinstance(known, int) and _INTEGER(str(value)):
        return int(value)
    if isinstance(known, str) and isinstance(value, str):
        text = value
        if len(text) > 1 and text[0] == text[-1] == '"':
            return None  # a quoted text, or a text with quotes
        return text if _SIMPLE(text) else None
    return None
