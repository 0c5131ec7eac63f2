"""Property: however unique values wander between rows, partitions and processes, the end is equal."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest

from tests.harness.feeder import Feeder, Table, applying, config_of
from tests.harness.given import execute
from tests.harness.tiers import corners

COLUMNS = [("id", "integer", "number"), ("email", "text", "text"), ("name", "text", "text")]
ROWS = 12
STEPS = 60


class Source:
    """What a source with a unique e-mail holds, changed by transactions that are valid there."""

    def __init__(self, table: Table, chance: random.Random) -> None:
        self.rows: dict[int, str] = {}
        self._table = table
        self._chance = chance
        self._lsn = 100

    def step(self) -> None:
        self._lsn += 10
        chance, rows = self._chance, self.rows
        kind = chance.choice(("make", "make", "drop", "turn", "turn", "turn", "pass on"))
        if kind == "make" and len(rows) < ROWS:
            n = chance.choice([n for n in range(ROWS) if n not in rows])
            free = [name for name in map("{}@x".format, range(ROWS)) if name not in rows.values()]
            self._create(n, chance.choice(free))
        elif kind == "drop" and rows:
            self._delete(chance.choice(list(rows)))
        elif kind == "turn" and len(rows) > 1:  # deferred to the commit, or by way of a third value
            turned = chance.sample(list(rows), chance.randint(2, min(5, len(rows))))
            emails = [rows[n] for n in turned]
            ordinal = 0
            if chance.random() < 0.5:
                self._update(turned[0], "aside@x", ordinal)
                ordinal += 1
            for n, email in zip(turned, emails[1:] + emails[:1], strict=True):
                self._update(n, email, ordinal)
                ordinal += 1
        elif kind == "pass on" and len(rows) > 1:  # one row goes, another gets its value
            one, other = chance.sample(list(rows), 2)
            email = rows[one]
            self._delete(one)
            self._update(other, email, 1)

    def _row(self, n: int) -> dict[str, object]:
        return {"id": n, "email": self.rows[n], "name": f"{n} at {self._lsn}"}

    def _create(self, n: int, email: str) -> None:
        self.rows[n] = email
        self._table.create(self._row(n), self._lsn)

    def _update(self, n: int, email: str, ordinal: int) -> None:
        self.rows[n] = email
        self._table.update(self._row(n), self._lsn, ordinal)

    def _delete(self, n: int) -> None:
        del self.rows[n]
        self._table.delete({"id": n, "email": None, "name": None}, self._lsn)


@pytest.mark.parametrize("processes", corners([1, 2], 1))
@pytest.mark.parametrize(
    ("seed", "email"),
    corners(
        [
            (1, "text UNIQUE"),
            (2, "text NOT NULL UNIQUE"),
            (3, "text NOT NULL UNIQUE CHECK (email LIKE '%@x')"),
            (4, "text UNIQUE DEFERRABLE"),
        ],
        2,
    ),
)
async def test_h23_wandering_values_end_where_they_are_in_the_source(
    feeder: Feeder, target_database: str, seed: int, email: str, processes: int
) -> None:
    chance = random.Random(seed)
    made = f"CREATE TABLE mirror.users (id int PRIMARY KEY, email {email}, name text)"
    await execute(target_database, "CREATE SCHEMA mirror", made)
    table = await feeder.table("users", COLUMNS, partitions=4)
    source = Source(table, chance)
    config = config_of(feeder, target_database, batch=f"{{rows: {chance.randint(1, 9)}}}")
    async with AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(applying(config)) for _ in range(processes)]
        for _ in range(STEPS):
            source.step()
            if chance.random() < 0.3:
                await feeder.flush()
        await feeder.flush()
        expected = sorted(source.rows.items())
        await runs[0].rows(target_database, "SELECT id, email FROM mirror.users ORDER BY id", expected)
        await runs[0].rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(0,)])
