"""A flow's table on both sides, put together of an origin's and a store's.

Here it is decided how rows are hashed (the servers' own function or canonical text) and how a table is cut
(ranges of the key or buckets). What is compared with what is the mapping's; what a kind of source or target
is, is known in `origins` and `stores` only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from consumers.reconcile import fast
from consumers.reconcile import mapping as maps
from consumers.reconcile.chunks import compared_chunks
from consumers.reconcile.mapping import Compared
from consumers.reconcile.origins.base import Captured, SourceSide
from consumers.reconcile.sides.base import Side
from consumers.reconcile.stores.base import Kept, Store
from streamer.config import Flow

FAST, CANONICAL = "fast", "canonical"
_NOT_OF_QUERY = "of the query is not in the target's table, and is not compared"


@dataclass(frozen=True, slots=True)
class Sides:
    """`why_not_fast`: where the path is canonical. `ordered`: cut by ranges; else by buckets."""

    captured: Captured
    source: SourceSide
    target: Side
    compared: Compared
    ordered: bool
    why_not_fast: str | None

    @property
    def path(self) -> str:
        return FAST if self.why_not_fast is None else CANONICAL


async def make_sides(
    captured: Captured, store: Store, flow: Flow, *, where: str, only: Collection[str]
) -> Sides:
    """`only`: the source's columns that are asked for. Raises Incomparable, ConfigError."""
    kept = await store.table(flow, captured.record, *flow.place(captured.schema, captured.name))
    there = kept.there if captured.log is not None else replace(kept.there, lacks=_NOT_OF_QUERY)
    compare = maps.compared_columns if flow.text is None else compared_chunks
    compared = compare(flow, captured.record, there, only)
    await captured.settle(compared)
    why_not = _why_not_fast(captured, kept, compared)
    server_hash = why_not is None
    return Sides(
        captured,
        captured.side(compared, where, server_hash=server_hash),
        kept.side(compared, where, server_hash=server_hash),
        compared,
        _ordered(captured, kept, compared),
        why_not,
    )


def _ordered(captured: Captured, kept: Kept, compared: Compared) -> bool:
    ours, theirs = captured.order, kept.order
    if ours is None or theirs is None or ours.collations is None:
        return False
    if any(pair.target_name in kept.there.nullable for pair in compared.key_pairs):
        return False
    return maps.ordered_alike(compared, ours.collations, theirs.collations)


def _why_not_fast(captured: Captured, kept: Kept, compared: Compared) -> str | None:
    if isinstance(kept.facts, str):
        return kept.facts
    if isinstance(captured.facts, str):
        return captured.facts
    return fast.why_not(captured.facts, kept.facts, compared.pairs)
