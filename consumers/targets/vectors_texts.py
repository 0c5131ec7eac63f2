"""A row's text, cut into chunks, and what tells that a chunk has to be embedded again. Pure.

    template   "{title}\\n\\n{body}": values of source columns; NULL is empty, `{{` and `}}` are braces
    token      a word of up to 32 letters and digits (a longer one counts as several), a Chinese, Japanese or
               Korean character, or any other sign that is no space
    chunk      `tokens` of them in a row, as they stand in the text; the next one begins `overlap` of them
               before its end

A chunk's hash is of its text, the function's name and the dimensions: equal hashes have equal vectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.config.key_template import split_template
from streamer.errors import ConfigError

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]{{1,32}}|[^\w\s]")


class Piece(NamedTuple):
    """One chunk. `hash`: 32 hex digits. An empty text has one empty chunk, which has no vector."""

    text: str
    hash: str


class Cut(NamedTuple):
    """A row's chunks. `source`: JSON of the values that the text was made of."""

    pieces: tuple[Piece, ...]
    source: str


class Texts:
    """The texts of one flow."""

    def __init__(self, flow: Flow) -> None:
        assert flow.text is not None
        self._literals, self.columns = split_template(flow.text)
        self._chunk = flow.chunk
        self._mark = f"{flow.embed}\0{flow.dimensions}\0".encode()

    def check(self, flow: Flow, record: SchemaRecord) -> None:
        """Raises ConfigError for a column that the source does not have."""
        known = [column.name for column in record.columns]
        for name in self.columns:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"`text` names {name!r}, which the source's table does not have",
                    where=f"flow {flow.name!r}, table {record.schema}.{record.table}",
                    fix=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}",
                )

    def cut(self, row: Mapping[str, Any], stored: Mapping[str, Any]) -> Cut:
        """`stored`: what stands in for values that the event does not have (H7)."""
        values: dict[str, Any] = {}
        for name in self.columns:
            value = row.get(name)
            values[name] = stored.get(name) if value == UNAVAILABLE else value
        text = self._literals[0]
        for name, literal in zip(self.columns, self._literals[1:], strict=True):
            text += _plain(values[name]) + literal
        return Cut(tuple(self._piece(part) for part in self._parts(text)), orjson.dumps(values).decode())

    def _parts(self, text: str) -> Sequence[str]:
        if not text.strip():
            return [""]
        if self._chunk is None:
            return [text]
        spans = [match.span() for match in _TOKEN.finditer(text)]
        size, step = self._chunk.tokens, self._chunk.tokens - self._chunk.overlap
        if len(spans) <= size:
            return [text]
        parts = []
        for start in range(0, len(spans), step):
            last = min(start + size, len(spans)) - 1
            parts.append(text[spans[start][0] : spans[last][1]])
            if last == len(spans) - 1:
                break
        return parts

    def hash_of(self, text: str) -> str:
        return blake2b(self._mark + text.encode(), digest_size=16).hexdigest()

    def _piece(self, text: str) -> Piece:
        return Piece(text, self.hash_of(text))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()
