"""What a query gives, as a side: a subquery on the source's server, read by buckets.

Every statement runs the query once. Ranges of its key would run it once each, as what a query makes has no
index; a bucket is a condition on what it gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.reconcile.expressions import NO_STAMP
from consumers.reconcile.sides.postgres import PostgresSide, Reading, Server, Session


@dataclass(frozen=True, slots=True)
class QueryReading(Reading):
    """`schema` and `table` are not read: the rows are those of `sql`, one statement without an end."""

    stamp: str = NO_STAMP
    sql: str = ""

    @property
    def relation(self) -> str:
        return subquery(self.sql)


class QuerySide(PostgresSide):
    """`name`: of the source."""

    def __init__(self, session: Session, name: str, reading: QueryReading, server: Server) -> None:
        super().__init__(session, reading, server)
        self._name = name

    @property
    def place(self) -> str:
        return f"query {self._name} in {self._session.place}"

    async def estimate(self) -> int:
        ((rows,),) = await self._rows(f"SELECT count(*) FROM {self._reading.relation}")
        return int(rows)


def subquery(sql: str) -> str:
    """What follows FROM; the query's last line may be a comment."""
    return f"(\n{sql}\n) q"
