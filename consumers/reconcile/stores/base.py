"""What reconcile asks of a target: whether a table is there, what it holds, and the side that reads it.

A new kind of store gives a `Store` and its `Kept`, a line in registry, and takes its kind out of job's
refusals. Its sides are of sides.base. What of it is compared follows from `Kept.there` (mapping).
"""

from __future__ import annotations

from typing import Protocol

from consumers.reconcile import fast, mapping
from consumers.reconcile.mapping import Compared
from consumers.reconcile.sides.base import Order, Side
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow


class Kept(Protocol):
    """A flow's table as the store holds it."""

    @property
    def there(self) -> mapping.Target: ...

    @property
    def order(self) -> Order | None:
        """None: rows come in no order of their keys, and are cut into buckets."""

    @property
    def facts(self) -> fast.Server | str:
        """Of a Postgres, for the fast path; or why there is none."""

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> Side:
        """Raises ConfigError: a condition that there is no language for."""


class Store(Protocol):
    """A flow's target; one session."""

    async def open(self) -> None:
        """Raises TargetUnavailable, ConfigError."""

    async def close(self) -> None: ...

    async def has(self, schema: str, name: str) -> bool:
        """A store that knows no tables has them all, without rows."""

    async def table(self, flow: Flow, record: SchemaRecord, schema: str, name: str) -> Kept:
        """One that `has`. `record`: the source's. Raises ConfigError, Incomparable."""
