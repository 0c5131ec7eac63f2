"""A row of a source beside its chunks in a vector target: what of both is compared. Pure.

A target's row is several there: one a chunk. So each side is brought to one row a key, with these columns
beside the metadata; a chunk's parts stand in the order of the chunks:

    _tailrace_chunk      the chunks' numbers: 0,1,2
    _tailrace_hash       their hashes, which are of the text, the function's name and the dimensions
    _tailrace_text       md5 of each chunk's text
    _tailrace_embedding  the dimensions of each chunk's vector; `-` where there is none
    _tailrace_source     md5 of the JSON that chunk 0 keeps of the template's columns
    _tailrace_metadata   `same` where all chunks have the same metadata

The source's are rendered as apply renders them (vectors_texts). Vectors are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from hashlib import md5
from typing import Any

from orjson import loads

from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.fast import Pair
from consumers.reconcile.forms import Form, Held
from consumers.reconcile.mapping import Compared, Target, compared_columns, quoted
from consumers.targets.vectors_plans import source_of
from consumers.targets.vectors_statements import CHUNK, EMBEDDING, HASH, OWN, SOURCE, TEXT
from consumers.targets.vectors_tables import is_metadata
from consumers.targets.vectors_texts import Texts
from streamer.changes.kinds import encoder_for
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow

NUMBERS, HASHES, TEXTS, VECTORS = CHUNK, HASH, source_of(TEXT), source_of(EMBEDDING)
METADATA = "_tailrace_metadata"
ADDED = (NUMBERS, HASHES, TEXTS, VECTORS, SOURCE, METADATA)
NONE = "-"  # a chunk's part that is not there
SAME, DIFFER = "same", "differ"
NO_TEXT = "no text"  # of a value that is none of its kind: apply refuses the row
NOTE = (
    "of each vector it is compared that it is there, has the flow's dimensions, and stands beside the text"
    " and the hash that it was made of; vectors are not computed again"
)

_KEPT = Held("text", "text")


def compared_chunks(flow: Flow, record: SchemaRecord, target: Target, only: Collection[str] = ()) -> Compared:
    """As compared_columns; the columns of the chunks are the last. Raises ConfigError, Incomparable."""
    texts = Texts(flow)
    texts.check(flow, record)
    metadata = replace(
        record, columns=tuple(c for c in record.columns if is_metadata(flow, c, texts.columns))
    )
    there = Target(
        {name: held for name, held in target.columns.items() if name not in OWN},
        [index - {CHUNK} for index in target.unique],
    )
    # A column that is in the text alone is compared as a part of it.
    within = set(texts.columns) - {column.name for column in metadata.columns}
    listed = [name for name in only if name not in within]
    found = compared_columns(flow, metadata, there, listed or record.key_columns if only else ())
    if flow.write != "insert_only" and (not only or not texts.columns or set(only) & set(texts.columns)):
        found.made = Rendered(flow, record)
        found.pairs += [_added(name) for name in ADDED]
        found.notes.append(NOTE)
    return found


def _added(name: str) -> Pair:
    column = SqlColumn(quoted(name), _KEPT, Form("text"))
    return Pair(name, column, column, name)


class Rendered:
    """The columns ADDED of the source's rows: see mapping.Made."""

    names = ADDED

    def __init__(self, flow: Flow, record: SchemaRecord) -> None:
        self._texts = Texts(flow)
        self._dimensions = str(flow.dimensions)
        by_name = {column.name: column for column in record.columns}
        self.columns = list(dict.fromkeys(self._texts.columns))
        self._reads = [_reader(by_name[name].kind) for name in self.columns]

    def of(self, printed: Sequence[str | None]) -> tuple[str, ...]:
        """`printed`: the values as the source's server prints them."""
        try:
            values = [
                None if text is None else read(text) for read, text in zip(self._reads, printed, strict=True)
            ]
        except ValueError:
            return (NO_TEXT,) * len(ADDED)
        return self.of_values(values)

    def of_values(self, values: Sequence[Any]) -> tuple[str, ...]:
        """`values`: as an event has them."""
        pieces, source = self._texts.cut(dict(zip(self.columns, values, strict=True)), {})
        return (
            ",".join(map(str, range(len(pieces)))),
            ",".join([piece.hash for piece in pieces]),
            ",".join([_md5(piece.text) for piece in pieces]),
            ",".join([self._dimensions if piece.text else NONE for piece in pieces]),
            _md5(source),
            SAME,
        )


def _reader(kind: str) -> Callable[[str], Any]:
    return str if kind == "text" else partial(_read, encoder_for(kind))


def _read(encode: Callable[[bytes], bytes], text: str) -> Any:
    return loads(encode(text.encode()))


def _md5(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()
