"""Schema records: one a table version, in the compacted topic `<name>.__schemas`, keyed by content.

JSON without schemas has no types; the record restores them for consumers. The id is the hash of
the content, so equal tables have equal ids and an id is kept for ever (H29).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from streamer.errors import FatalError

FORMAT = 1
ID_BYTES = 8  # 64 bits: 16 hex digits in every event


@dataclass(frozen=True, slots=True)
class Column:
    """`type` is format_type(oid, typmod) as the source prints it, domains resolved to their base.

    `kind` names the JSON form (see streamer.changes.kinds): it is all a decoder needs.
    """

    name: str
    type: str
    typmod: int
    kind: str
    key: bool


@dataclass(frozen=True, slots=True)
class SchemaRecord:
    source: str
    schema: str
    table: str
    identity: str  # replica identity: d(efault) n(othing) f(ull) i(ndex)
    columns: tuple[Column, ...]

    @property
    def key_columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns if c.key)

    @property
    def id(self) -> str:
        return blake2b(self._content(), digest_size=ID_BYTES).hexdigest()

    def _content(self) -> bytes:
        return orjson.dumps(
            {
                "format": FORMAT,
                "source": self.source,
                "schema": self.schema,
                "table": self.table,
                "identity": self.identity,
                "columns": [
                    {"name": c.name, "type": c.type, "typmod": c.typmod, "kind": c.kind, "key": c.key}
                    for c in self.columns
                ],
            }
        )

    def dump_key(self) -> bytes:
        return orjson.dumps({"schema_id": self.id})

    def dump(self) -> bytes:
        return self._content()

    @classmethod
    def load(cls, value: bytes) -> SchemaRecord:
        raw: dict[str, Any] = orjson.loads(value)
        version = raw.pop("format", None)
        if version != FORMAT:
            raise FatalError(
                f"the schemas topic has format {version}, this program reads {FORMAT}",
                fix="run the version of Tailrace that wrote it, or a newer one",
            )
        columns = tuple(Column(**c) for c in raw.pop("columns"))
        return cls(**raw, columns=columns)
