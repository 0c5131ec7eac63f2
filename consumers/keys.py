"""Keys of rows as people write them, beside the key's bytes in Kafka. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

from streamer.errors import ConfigError

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
    """Many of them, each as WantedKey has it, or as the array of its columns' values in their order."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Raises ConfigError for what begins as JSON and is none; `number` says which it was."""
        self._texts: set[str] = set()
        self._forms: set[bytes] = set()
        for number, text in enumerate(texts, 1):
            self._texts.add(text)
            if text[:1] in ("{", "["):
                try:
                    self._forms.add(_sorted(orjson.loads(text)))
                except ValueError as error:
                    raise ConfigError(
                        f"key {number}, {text!r}, begins as JSON and is none: {error}",
                        fix='write {"id": 7}, [7] or, of a key of one column, 7',
                    ) from error

    def __len__(self) -> int:
        return len(self._texts)

    def fits(self, key: bytes | None) -> bool:
        if key is None:
            return False
        if not self._texts.isdisjoint(spellings(key)):
            return True
        try:
            value = orjson.loads(key)
        except ValueError:
            return False
        forms = [_sorted(value)]
        if isinstance(value, dict):
            forms.append(_sorted(list(value.values())))
        return not self._forms.isdisjoint(forms)


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
