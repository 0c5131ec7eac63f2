"""The statements for rows that are several: one a chunk, under the key and the chunk's number.

Nothing is run here.

A source row's chunks have one version, and are written, kept and deleted together: guards look at the key.
What is sent without a vector takes it from a chunk of that key whose hash is the same; a chunk with a text
and without a vector breaks the table's check, so that a vector that has gone meanwhile is never missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_statements import EXCLUDED, SENT, STORED, VERSION, Sent, Shape

CHUNK = "_tailrace_chunk"  # from 0
TEXT = "text"
HASH = "_tailrace_hash"
EMBEDDING = "embedding"
SOURCE = "_tailrace_source"  # what the text was made of; of a row's first chunk
OWN = (CHUNK, TEXT, HASH, EMBEDDING, SOURCE)
CHECK = "_tailrace_embedded"
COUNT = ("n", "int")  # the array behind the version: how many chunks the row has

_CHUNK, _TEXT, _HASH, _EMBEDDING, _SOURCE = map(quote, OWN)


def check_sql(relation: str) -> str:
    check = f"CHECK ({_EMBEDDING} IS NOT NULL OR {_TEXT} = '')"
    return f"ALTER TABLE {relation} ADD CONSTRAINT {CHECK} {check} NOT VALID"


def whole(shape: Shape) -> Shape:
    """The same table by the source's key: every statement reaches all chunks."""
    columns = tuple(column for column in shape.columns if column.name not in OWN)
    return replace(shape, columns=columns)


class ChunkStatements:
    """`shape`: of chunks; its columns hold OWN."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._whole = whole(shape)
        self._at = {column.name: n for n, column in enumerate(shape.columns)}

    def _v(self, name: str) -> str:
        return f"s.v{self._at[name]}"

    def _typed(self, columns: Sequence[Sent]) -> str:
        """A CTE `s`: the key k0.., values v0.. by the column's place in the shape, the version, the count."""
        key = self._whole.key
        numbered = [(key.index(c), f"s.c{n}{c.cast}") for n, c in enumerate(columns) if c in key]
        keys = ", ".join(f"{expression} AS k{n}" for n, expression in numbered)
        values = ", ".join(f"s.c{n}{c.cast} AS v{self._at[c.name]}" for n, c in enumerate(columns))
        source = self._shape.source(columns, COUNT)
        return f"s AS MATERIALIZED (SELECT {keys}, {values}, s.e, s.l, s.o, s.n FROM {source})"

    def _vector(self) -> str:
        same = f"{self._whole.matches()} AND t.{_HASH} = {self._v(HASH)} AND t.{_EMBEDDING} IS NOT NULL"
        stored = f"SELECT t.{_EMBEDDING} FROM {self._shape.relation} AS t WHERE {same} LIMIT 1"
        lacks = f"{self._v(EMBEDDING)} IS NULL AND {self._v(TEXT)} <> ''"
        return f"CASE WHEN {lacks} THEN ({stored}) ELSE {self._v(EMBEDDING)} END"

    def rows(self) -> str:
        """Whole rows. Gives (chunks written, rows that a newer version kept)."""
        shape, matches = self._shape, self._whole.matches()
        ctes = [self._typed(shape.columns)]
        if shape.write == "append":
            key = ", ".join(map(quote, shape.conflict))
            ctes.append("g AS (SELECT * FROM s)")
            conflict = f"({key}) WHERE _tailrace_epoch > 0 DO NOTHING"
        else:
            stays = f"EXISTS (SELECT FROM {shape.relation} AS t WHERE {matches} AND {self._blocks()})"
            ctes.append(f"g AS MATERIALIZED (SELECT * FROM s WHERE NOT {stays})")
            ctes.append(
                f"d AS (DELETE FROM {shape.relation} AS t USING g AS s WHERE {self._v(CHUNK)} = 0"
                f" AND {matches} AND t.{_CHUNK} >= s.n)"
            )
            if shape.write == "insert_only":
                ctes.append(self._seen())
            conflict = f"({', '.join(map(quote, shape.conflict))}) DO UPDATE SET {self._sets()}"
            conflict += f" WHERE {STORED} <= {EXCLUDED}"
        ctes.append(f"i AS ({self._insert()} ON CONFLICT {conflict} RETURNING 1)")
        first = f"SELECT count(*) FROM {{0}} s WHERE {self._v(CHUNK)} = 0"
        kept = f"({first.format('s')}) - ({first.format('g')})"
        return f"WITH {', '.join(ctes)} SELECT (SELECT count(*) FROM i), {kept}"

    def _blocks(self) -> str:
        """A stored chunk `t` for which the row stays as it is."""
        newer = f"{STORED} > {SENT}"
        if self._shape.write != "insert_only":
            return newer
        return f"({newer} OR t.{quote(self._shape.soft)} IS NULL)" if self._shape.soft else "true"

    def _seen(self) -> str:
        """Rows that stay as they were first seen: their version moves on."""
        sets = ", ".join(f"{n} = s.{v}" for n, v in zip(VERSION, "elo", strict=True))
        soft = f" AND t.{quote(self._shape.soft)} IS NULL" if self._shape.soft else ""
        return (
            f"u AS (UPDATE {self._shape.relation} AS t SET {sets} FROM s WHERE {self._v(CHUNK)} = 0"
            f" AND {self._whole.matches()} AND {STORED} < {SENT}{soft})"
        )

    def _own(self) -> tuple[list[str], list[str]]:
        shape = self._shape
        names, values = list(shape.constants), list(shape.constants.values())
        if shape.soft is not None and shape.write != "append":
            names.append(shape.soft)
            values.append("NULL")
        return names, values

    def _insert(self) -> str:
        shape = self._shape
        names, values = self._own()
        wanted = ", ".join([*map(quote, [*self._at, *names]), *VERSION])
        sent = [self._vector() if name == EMBEDDING else self._v(name) for name in self._at]
        return (
            f"INSERT INTO {shape.relation} AS t ({wanted}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join([*sent, *values, 's.e', 's.l', 's.o'])} FROM g AS s"
        )

    def _sets(self) -> str:
        names = [c.name for c in self._shape.columns if c.settable and not (c.key and c.exact)]
        names += [name for name in self._own()[0] if name not in self._shape.conflict]
        return ", ".join([*(f"{quote(n)} = excluded.{quote(n)}" for n in names), *_versions()])

    def texts(self, rest: Sequence[str]) -> str:
        """Chunks of rows that a patch has just written: they have its version. `rest`: the other columns
        that are stored, which chunks that are added have as the first one has them."""
        columns = [column for column in self._shape.columns if column.key or column.name in OWN]
        shape, matches = self._shape, self._whole.matches()
        first = f"t.{_CHUNK} = 0 AND {STORED} = {SENT}"
        kept = "".join(f", t.{quote(name)} AS w{n}" for n, name in enumerate(rest))
        names = [column.name for column in columns]
        wanted = ", ".join(map(quote, [*names, *rest]))
        sent = [self._vector() if name == EMBEDDING else self._v(name) for name in names]
        sent += [f"s.w{n}" for n in range(len(rest))]
        sets = ", ".join(f"{column} = excluded.{column}" for column in (_TEXT, _HASH, _EMBEDDING, _SOURCE))
        return (
            f"WITH {self._typed(columns)},"
            f" g AS MATERIALIZED (SELECT s.*{kept} FROM s JOIN {shape.relation} AS t"
            f" ON {matches} AND {first}),"
            f" d AS (DELETE FROM {shape.relation} AS t USING g AS s WHERE {self._v(CHUNK)} = 0"
            f" AND {matches} AND t.{_CHUNK} >= s.n)"
            f" INSERT INTO {shape.relation} AS t ({wanted}) OVERRIDING SYSTEM VALUE SELECT {', '.join(sent)}"
            f" FROM g AS s ON CONFLICT ({', '.join(map(quote, shape.conflict))}) DO UPDATE SET {sets}"
        )

    def stored(self) -> str:
        """What is there of keys: (index, chunk, hash or null when it has no vector, source, version)."""
        keys = self._whole.key
        source = self._shape.source(keys, ("i", "int"))
        return (
            f"SELECT s.i, t.{_CHUNK},"
            f" CASE WHEN t.{_EMBEDDING} IS NOT NULL OR t.{_TEXT} = '' THEN t.{_HASH} END,"
            f" t.{_SOURCE}::text, {', '.join(f't.{name}' for name in VERSION)}"
            f" FROM (SELECT {self._whole.named_keys(keys)}, s.i FROM {source}) s"
            f" JOIN {self._shape.relation} AS t ON {self._whole.matches()} ORDER BY 1, 2"
        )


def _versions() -> list[str]:
    return [f"{name} = excluded.{name}" for name in VERSION]
