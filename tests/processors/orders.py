"""A table of orders for workers, an agent that counts what it sees, and a kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from consumers.processors import Changes, Derived, agent, table
from tests.harness.feeder import Feeder, Table

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]


@agent
async def counted(changes: Changes) -> AsyncIterator[Derived]:
    """How many changes of a key were seen: twice in doubt would show."""
    async for change in changes:
        seen = table("seen")
        count = int(seen.get(change.raw_key) or b"0") + 1
        seen.put(change.raw_key, b"%d" % count)
        yield change.to(after={"id": change.key["id"], "count": count})


def counts(expected: Mapping[int, int]) -> dict[str, dict[str, int]]:
    return {f'{{"id":{key}}}': {"id": key, "count": count} for key, count in expected.items()}


async def write(feeder: Feeder, orders: Table, keys: range, lsn: int) -> None:
    for number in keys:
        orders.update({"id": number, "n": lsn}, lsn=lsn + number)
    await feeder.flush()


class Killed(Exception):
    """Stands for a SIGKILL."""
