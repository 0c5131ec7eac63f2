"""Both sides of a flow into a vector target, a row a key: see consumers.reconcile.chunks.

The target's chunks are gathered by its server, by the index of key and chunk. The source's rows are read and
rendered in this process, some hundred at a time, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from consumers.reconcile.canonical import row_digest
from consumers.reconcile.chunks import (
    DIFFER,
    HASHES,
    METADATA,
    NONE,
    NUMBERS,
    SAME,
    TEXTS,
    VECTORS,
)
from consumers.reconcile.dialects import postgres as dialect
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.digest import EMPTY, RangeDigest, RowHash
from consumers.reconcile.expressions import bracketed, literal, quote
from consumers.reconcile.forms import Form, Held
from consumers.reconcile.groups import Counts, Grouping
from consumers.reconcile.mapping import Made
from consumers.reconcile.sides.base import Bucket, Key, KeyRange, Part, Plan, Row, key_hash
from consumers.reconcile.sides.postgres import PostgresSide, Reading
from consumers.targets.vectors_statements import CHUNK, EMBEDDING, HASH, SOURCE, TEXT
from streamer.changes.kinds import ARRAY

Texts = tuple[str | None, ...]
R = TypeVar("R", bound=Reading)

RANGE_ROWS = 500  # a scattered fault costs the rendering of so many once more
BATCH_ROWS = 200  # rendered in one go: some MB of text, some milliseconds
_PRINTED = Held("text", "text")  # a value of any type, left to the server to print

# Types whose equal values are printed alike: the others' keys are told apart by how they are printed, too.
_ONE_SPELLING = frozenset({"smallint", "integer", "bigint", "uuid", "text", "character varying", "date"})


@dataclass(frozen=True, slots=True)
class ChunkReading(Reading):
    """`columns`: metadata and the columns of the chunks; `extension`: the schema of pgvector; `major` and
    `plain`: of the server."""

    extension: str = "public"
    major: int = 0
    plain: bool = True

    def rows(self, condition: str = "", *, sample: str = "", all_: bool = False) -> str:
        """One row a key: its first chunk's metadata, and what all its chunks are like.

        The frame is the whole partition, so that each aggregate is made once. A condition of the key goes
        down to the table, as the key is what is partitioned by.
        """
        where = "" if all_ else self.where
        named = {**self.beside, **self.expressions} if where else self.expressions
        listed = [f"{expression} AS {quote(name)}" for name, expression in named.items()]
        own = [f"{quote(name)} AS {alias}" for name, alias in _CHUNKS.items()]
        live, stamp = f" WHERE {self.live}" if self.live else "", f"{self.stamp} AS _tailrace_s"
        chunks = f"SELECT {', '.join([*listed, *own, stamp])} FROM {self.relation}{live}"
        names = ", ".join(map(quote, named))
        by = ", ".join(_told_apart(self.key, self.major))
        gathered = (
            f"SELECT {names}, {', '.join(self._gathered())}, row_number() OVER w AS _tailrace_n,"
            f" max(_tailrace_s::text) OVER w AS _tailrace_stamp FROM ({chunks}) c"
            f" WINDOW w AS (PARTITION BY {by} ORDER BY {_C}"
            " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
        )
        conditions = ["_tailrace_n = 1", *(bracketed(c) for c in (condition, where) if c)]
        return f"({gathered}) t WHERE {' AND '.join(conditions)}"

    def _gathered(self) -> Iterator[str]:
        none = literal(NONE)
        dims = f"{quote(self.extension)}.vector_dims({_V})::text"
        parts = {
            NUMBERS: f"{_C}::text",
            HASHES: f"coalesce(replace({_H}::text, '-', ''), {none})",
            TEXTS: f"coalesce(md5({_utf8(_X, self.plain)}), {none})",
            VECTORS: f"coalesce({dims}, {none})",
        }
        for name, part in parts.items():
            yield f"string_agg({part}, ',') OVER w AS {quote(name)}"
        alone = f"CASE WHEN count({_J}) OVER w = 1 THEN md5({_utf8(_J, self.plain)}) END"
        yield f"coalesce({alone}, {none}) AS {quote(SOURCE)}"
        metadata = [column for column in self.columns if column.sql in map(quote, self.expressions)]
        text = dialect.row_text(metadata, major=self.major, plain=self.plain)
        text = f'md5({text}) COLLATE "C"'
        same = f"min({text}) OVER w = max({text}) OVER w"
        yield f"CASE WHEN {same} THEN '{SAME}' ELSE '{DIFFER}' END AS {quote(METADATA)}"


# Aliases of a chunk's own columns, which no column of a source has.
_C, _H, _X, _V, _J = (f"_tailrace_{letter}" for letter in "chxvj")
_CHUNKS = {CHUNK: _C, HASH: _H, TEXT: _X, EMBEDDING: _V, SOURCE: _J}


def _utf8(text: str, plain: bool) -> str:
    return f"{text}::text" if plain else f"convert_to({text}::text, 'UTF8')"


def _told_apart(key: Sequence[SqlColumn], major: int) -> Iterator[str]:
    for column in key:
        yield column.sql
        if column.held.base not in _ONE_SPELLING or column.held.kind.startswith(ARRAY):
            yield dialect.printed(dialect.column_sql(column, major=major))


def rendered_side(side_of: Callable[[R], PostgresSide], reading: R, made: Made) -> RenderedSide:
    """`reading`: of the columns that are no made ones; `side_of`: what reads so."""
    names = [f"_tailrace_of_{at}" for at in range(len(made.columns))]
    of_text = {name: quote(column) for name, column in zip(names, made.columns, strict=True)}
    read = replace(
        reading,
        expressions={**reading.expressions, **of_text},
        columns=[*reading.columns, *(SqlColumn(quote(name), _PRINTED, Form("text")) for name in names)],
    )
    return RenderedSide(side_of(read), made)


class RenderedSide:
    """A source's rows with the columns that are made of them.

    `rows`: its side, whose last columns are those that the others are made of, as the server prints them.
    """

    def __init__(self, rows: PostgresSide, made: Made) -> None:
        self._rows = rows
        self._made = made
        self._more = len(made.columns)

    @property
    def place(self) -> str:
        return self._rows.place

    @property
    def read_bytes(self) -> int:
        return self._rows.read_bytes

    async def close(self) -> None:
        await self._rows.close()

    async def estimate(self) -> int:
        return await self._rows.estimate()

    async def plan(self, range_rows: int) -> Plan:
        return replace(await self._rows.plan(min(range_rows, RANGE_ROWS)), one_scan=False)

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        return await self._rows.split(part, parts, rows)

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        if isinstance(parts[0], KeyRange):
            return [await self._digest(part) for part in parts]
        of = _of(parts)
        sums: dict[int, RangeDigest] = {}
        async for hashes in self._hashes(parts):
            for key, row_hash in hashes:
                at = key_hash(key) % of
                sums[at] = sums.get(at, EMPTY) + RangeDigest(1, *row_hash)
        return [sums.get(part.at, EMPTY) for part in parts if isinstance(part, Bucket)]

    async def _digest(self, part: Part) -> RangeDigest:
        found = EMPTY
        async for hashes in self._hashes([part]):
            found += RangeDigest.of_hashes(row_hash for _, row_hash in hashes)
        return found

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        return {key: row_hash async for hashes in self._hashes(parts) for key, row_hash in hashes}

    async def _hashes(self, parts: Sequence[Part]) -> AsyncIterator[list[tuple[Key, RowHash]]]:
        async for batch in self._rows.texts(parts, BATCH_ROWS):
            yield await asyncio.to_thread(self._hashed, batch)

    def _hashed(self, batch: Sequence[tuple[Key, Texts]]) -> list[tuple[Key, RowHash]]:
        return [(key, row_digest(self._with_made(texts))) for key, texts in batch]

    def _with_made(self, texts: Texts) -> Texts:
        own = len(texts) - self._more
        return (*texts[:own], *self._made.of(texts[own:]))

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        found: dict[Key, Row] = {}
        for at in range(0, len(keys), BATCH_ROWS):
            some = await self._rows.rows(keys[at : at + BATCH_ROWS])
            found |= await asyncio.to_thread(self._rendered, some)
        return found

    def _rendered(self, rows: Mapping[Key, Row]) -> dict[Key, Row]:
        return {key: Row(self._with_made(row.texts), row.stamp) for key, row in rows.items()}

    async def groups(self, grouping: Grouping) -> Counts:
        return await self._rows.groups(grouping)


def _of(parts: Sequence[Part]) -> int:
    assert isinstance(parts[0], Bucket)
    return parts[0].of
