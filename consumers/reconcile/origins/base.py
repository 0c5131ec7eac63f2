"""What reconcile asks of a source: its tables, the side that reads each, and what the fence needs of it.

A new kind of origin gives an `Origin` and its `Captured`, a line in registry, and takes its kind out of
job's refusals. Its sides are of sides.base. It owns what is read and how a place in its log is told; what is
compared with what is mapping's, how a table is cut is tables', and the fence's order is the fence's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from consumers.reconcile import fast, fence
from consumers.reconcile.mapping import Compared
from consumers.reconcile.sides.base import Key, Order, Plan, Side
from streamer.changes.backfill import Request
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow


@dataclass(frozen=True, slots=True)
class Refused:
    """A table that the flow takes, and that is not captured; `why`, for people."""

    qualified: str
    schema: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Moves:
    """How it is seen that a source's row was written while the fence was waited for.

    `rounds`: so many in a row must show the same difference before it counts. `moved`: of these keys those
    that were written since their rows were read the last time but one, though no stamp tells.
    `unusable`: of the keys whose rows were read the last time those whose values the capture passes over.
    """

    rounds: int = fence.CERTAIN
    moved: fence.Moved | None = None
    unusable: Callable[[], Collection[Key]] | None = None


class SourceSide(Side, Protocol):
    async def plan(self, range_rows: int) -> Plan:
        """Ranges of about so many rows. Asked of an origin with an `order` only."""


class Logged(fence.Source, Protocol):
    """What the log gives of one table: the fence's source, how rows are seen to move, and a backfill."""

    @property
    def topic(self) -> str:
        """Where its changes are."""

    @property
    def source(self) -> str:
        """Whose log it is: a name of the config."""

    @property
    def hops(self) -> fence.Hops | None:
        """What is between the capture and the topic."""

    def moves(self, side: SourceSide) -> Moves:
        """What the fence sees of writes to `side`'s rows."""

    def shown(self, lsn: int) -> str:
        """A place in the log, for people."""

    @property
    def request(self) -> Callable[[str], Request] | None:
        """A backfill of the table, by its run; what is wanted of it is put in by who asks. None: nothing
        brings its rows one by one."""


class Captured(Protocol):
    """One table of an origin, described as its capture does."""

    @property
    def qualified(self) -> str:
        """For people, and as `tailrace backfill SOURCE` takes it."""

    @property
    def schema(self) -> str:
        """With `name`, what flow.place takes."""

    @property
    def name(self) -> str: ...

    @property
    def record(self) -> SchemaRecord: ...

    @property
    def order(self) -> Order | None:
        """None: rows come in no order of their keys, and are cut into buckets."""

    @property
    def facts(self) -> fast.Server | str:
        """Of a Postgres, for the fast path; else why there is none."""

    @property
    def log(self) -> Logged | None:
        """None: nothing captures it; what stays different is drift (settle), and nothing publishes a row
        again."""

    async def count(self) -> int:
        """Its rows, exactly. Raises Incomparable for a table that is not captured (yet)."""

    async def settle(self, compared: Compared) -> None:
        """Takes out what this source cannot bring to the compared form. Raises Incomparable."""

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> SourceSide:
        """Raises ConfigError: a condition that there is no language for."""


class Origin(Protocol):
    """A flow's source; one session."""

    async def open(self) -> None:
        """Raises SourceUnavailable, ConfigError."""

    async def close(self) -> None: ...

    def tables(self, flow: Flow) -> AsyncGenerator[Captured | Refused, None]:
        """Those that the flow takes, each described when its turn comes.

        One is compared to its end before the next is asked for; it may still be judged later, for a repair.
        """
