"""The pgvector target: a row is read back from its chunks, which have to agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, ClassVar

import orjson
from psycopg import sql

from tests.conformance.adapters.base import SCHEMA, Row
from tests.conformance.adapters.postgres import PostgresAdapter, _name

DIMENSIONS = 4
_OWN = {
    "text": "text",
    "_tailrace_hash": "uuid",
    "embedding": f"vector({DIMENSIONS})",
    "_tailrace_source": "json",
}


def embed(texts: list[str]) -> list[list[float]]:
    """A vector that tells texts apart."""
    return [
        [float(byte + 1) for byte in blake2b(text.encode(), digest_size=DIMENSIONS).digest()]
        for text in texts
    ]


class PgvectorAdapter(PostgresAdapter):
    beside: ClassVar[tuple[str, ...]] = tuple(_OWN)
    tells_versions: ClassVar[bool] = False
    abilities: ClassVar[frozenset[str]] = frozenset({"durable", "tables", "schemas", "ddl"})
    text: ClassVar[str] = "{id}"
    chunk: ClassVar[dict[str, int] | None] = None

    def settings(self) -> dict[str, Any]:
        return {"kind": "pgvector", "url": self.address}

    def flow(self, keys: dict[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"text": self.text, "embed": f"{__name__}:embed", "dimensions": DIMENSIONS}
        return {**own, **({"chunk": self.chunk} if self.chunk else {}), **keys}

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        async with await self._connect() as connection:
            there = await connection.execute("SELECT to_regclass(%s) AS r", (f'"{schema}"."{table}"',))
            if (await there.fetchall())[0]["r"] is None:
                return []
            query = sql.SQL("SELECT *, embedding::text AS e FROM {} ORDER BY id, {}, _tailrace_chunk")
            versions = sql.SQL("_tailrace_epoch, _tailrace_lsn, _tailrace_ordinal")
            found = await (await connection.execute(query.format(_name(table, schema), versions))).fetchall()
        rows: list[Row] = []
        number = 0
        for chunk in found:
            number = 0 if chunk["_tailrace_chunk"] == 0 else number + 1
            assert chunk["_tailrace_chunk"] == number, "chunks of one row, from 0 on"
            text = chunk["text"]
            assert chunk["e"] == (
                None if text == "" else orjson.dumps(embed([text])[0]).decode().replace(".0", "")
            )
            metadata = {
                name: value
                for name, value in chunk.items()
                if not name.startswith("_tailrace") and name not in ("text", "embedding", "e")
            }
            if number == 0:
                rows.append({**metadata, **chunk["_tailrace_source"]})
                whole = text
            else:
                assert metadata.items() <= rows[-1].items(), "every chunk has the row's metadata"
                assert chunk["_tailrace_source"] is None
                whole += f" {text}"
            rows[-1]["text"] = whole
        for row in rows:
            expected = self.text.format(
                **{name: "" if value is None else value for name, value in row.items()}
            )
            assert row.pop("text").split() == expected.split()
        return rows

    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        texts = sql.SQL("").join(
            sql.SQL(", {} {}").format(sql.Identifier(name), sql.SQL(_OWN.get(name, "text")))
            for name in columns
            if name != "id"
        )
        made = sql.SQL(
            "CREATE TABLE {} (id integer, _tailrace_chunk integer{}, PRIMARY KEY (id, _tailrace_chunk))"
        )
        await self._execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
        await self._execute(made.format(_name(table), texts))
