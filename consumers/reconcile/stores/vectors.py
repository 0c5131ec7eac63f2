"""A vector target's tables: their chunks, gathered to a row a key, by one read-only session."""

from __future__ import annotations

from dataclasses import dataclass

from consumers.reconcile import expressions, fast, mapping
from consumers.reconcile.mapping import Compared, Incomparable
from consumers.reconcile.sides.base import Order, Side
from consumers.reconcile.sides.postgres import PostgresSide
from consumers.reconcile.sides.vectors import ChunkReading
from consumers.reconcile.stores.base import Kept
from consumers.reconcile.stores.postgres import PostgresKept, PostgresStore
from consumers.targets.vectors_statements import OWN
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow

WHY_NOT_FAST = "the target keeps chunks of texts"

# The schema of the function, which need not be on the path.
_DIMS = """SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'"""


class VectorStore(PostgresStore):
    async def table(self, flow: Flow, record: SchemaRecord, schema: str, name: str) -> Kept:
        kept = await self.described(record, schema, name)
        missing = [column for column in OWN if column not in kept.there.columns]
        if missing:
            raise Incomparable(
                f"the target's table has no column {missing[0]!r}, which chunks have: apply adds it with the"
                " first change"
            )
        ((extension,),) = await self._session.rows(_DIMS)
        return VectorKept(kept, str(extension))


@dataclass(frozen=True, slots=True)
class VectorKept:
    """`kept`: the table as Postgres has it; `extension`: the schema of pgvector."""

    kept: PostgresKept
    extension: str
    facts: fast.Server | str = WHY_NOT_FAST

    @property
    def there(self) -> mapping.Target:
        return self.kept.there

    @property
    def order(self) -> Order | None:
        return self.kept.order

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> Side:
        kept = self.kept
        reading = ChunkReading(
            kept.table.schema,
            kept.table.name,
            not kept.table.partitioned,
            expressions.of_target(compared),
            [pair.target for pair in compared.pairs],
            [pair.target for pair in compared.key_pairs],
            expressions.stamp(kept.there.columns),
            live=expressions.live(compared),
            where=where,
            beside=expressions.beside_target(compared),
            extension=self.extension,
            major=kept.server.major,
            plain=kept.server.plain,
        )
        return PostgresSide(kept.session, reading, kept.server)
