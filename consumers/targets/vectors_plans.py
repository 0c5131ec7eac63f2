"""How rows of one schema record become chunks of one table. A Plan of Postgres's whose rows are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumers.apply.fold import Write
from consumers.targets import vectors_statements as chunks
from consumers.targets.postgres_arrays import plain
from consumers.targets.postgres_plans import Literals, Plan
from consumers.targets.postgres_statements import VERSION, Sent
from consumers.targets.postgres_tables import Fitted
from consumers.targets.vectors_texts import Cut, Texts
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow

_OWN_SOURCES = {name: f"_tailrace_{name}" for name in (chunks.TEXT, chunks.EMBEDDING)}


def source_of(name: str) -> str:
    """Where a column of ours stands in a chunk's row: no column of the source is called that."""
    return _OWN_SOURCES.get(name, name)


class VectorPlan(Plan):
    """`record`: the source's. What is known of a batch's texts is bound to it before its rows are written."""

    def __init__(
        self, fitted: Fitted, flow: Flow, texts: Texts, record: SchemaRecord, *, silent: bool
    ) -> None:
        super().__init__(fitted, flow, silent=silent)
        by_key = chunks.whole(self._shape)
        statements = chunks.ChunkStatements(self._shape)
        self.texts = texts
        self.of_text = frozenset(texts.columns)
        self.key = by_key.key
        self._metadata = by_key.columns
        self.sources |= self.of_text
        self.sends_all = self.sources >= {column.name for column in record.columns}
        self.row_statements = (statements.rows(),)
        self.tells_kept = True
        self.delete_sql = by_key.delete() if flow.write != "append" else ""
        self.vacate_sql = self.leave_sql = None
        self.stored_sql = statements.stored()
        self.below_sql = by_key.below() if flow.write != "append" else ()
        self.count_below_sql = by_key.count_below(f"t.{chunks.CHUNK} = 0")
        self.given_keys_sql = by_key.given_keys(1)
        self._by_key = by_key
        sent = {column.name for column in self._shape.columns if column.key} | set(chunks.OWN)
        rest = [n for n, c in fitted.table.columns.items() if n not in sent and not c.generated]
        self._texts_sql = statements.texts(rest)
        self._texts_columns = [c for c in self._shape.columns if c.name in sent]
        self._cuts: dict[int, Cut] = {}
        self._vectors: dict[str, str] = {}
        self._same: set[int] = set()
        assert set(VERSION) <= set(rest)

    # The batch's texts, by the identity of the events, which live as long as it does

    def forget(self) -> None:
        self._cuts, self._vectors, self._same = {}, {}, set()

    def bind(self, cuts: Mapping[int, Cut], vectors: Mapping[str, str], same: set[int]) -> None:
        """`vectors`: by hash; what is not there is in the table. `same`: patches that leave the text."""
        self._cuts.update(cuts)
        self._vectors.update(vectors)
        self._same |= same

    # Parameters

    def row_literals(self, writes: Sequence[Write]) -> Literals:
        return self._chunks(self.columns, writes)

    def patch_sql(self, present: frozenset[str]) -> str:
        if present not in self._patches:
            self._patches[present] = self._by_key.patch(self.patched(present))
        return self._patches[present]

    def patched(self, present: frozenset[str]) -> list[Sent]:
        return [column for column in self._metadata if column.source in present]

    def after_patch(self, writes: Sequence[Write]) -> list[tuple[str, Literals]]:
        changed = [write for write in writes if id(write.change) not in self._same]
        return [(self._texts_sql, self._chunks(self._texts_columns, changed))] if changed else []

    def stored_literals(self, writes: Sequence[Write]) -> Literals:
        return [*self.literals(self.key, writes), plain(range(len(writes)))]

    def _chunks(self, columns: Sequence[Sent], writes: Sequence[Write]) -> Literals:
        made: list[Write] = []
        counts: list[int] = []
        for write in writes:
            pieces, source = self._cuts[id(write.change)]
            for at, piece in enumerate(pieces):
                row = {
                    **write.row,
                    chunks.CHUNK: at,
                    source_of(chunks.TEXT): piece.text,
                    chunks.HASH: piece.hash,
                    source_of(chunks.EMBEDDING): self._vectors.get(piece.hash),
                    chunks.SOURCE: source if at == 0 else None,
                }
                made.append(Write(row, write.change, write.offset))
                counts.append(len(pieces))
        return [*self.literals(columns, made), plain(counts)]
