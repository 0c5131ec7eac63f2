"""Derived rows with a key of their own equal the query, in any order of partitions, however a key is spelt.

Equal numbers are one key; -0 is another value than 0. What JSON and ranges hold is equal as Postgres says,
which tests/processors/test_values.py asks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orjson import dumps

from consumers.processors import Change, Definition, Given, agent, helpers
from consumers.processors.context import Row
from consumers.processors.operators.join import Join
from consumers.processors.rehearsal import Rehearsal, Sent
from consumers.testing import Log, LogTable
from tests.harness import partitions

LEFT, RIGHT = "shop.public.l", "shop.public.r"
NUMBERS = ("1", "1.0", "1.00", "2.5", "2.50", "0", "0.0", "100")
FLOATS = (0.0, -0.0, 1.0)

_put = st.tuples(st.integers(1, 4), st.sampled_from(NUMBERS), st.sampled_from(FLOATS), st.integers(0, 6))
_acts = st.lists(st.one_of(_put, st.integers(1, 4)), min_size=1, max_size=40)
_PROPERTY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Source:
    """Rows of `l`, of which each has a match in `r`, in the log of a helper's hops."""

    def __init__(self, definition: Definition, key: list[str], random: Random) -> None:
        log = Log("shop")
        self.tables = {
            LEFT: log.table("l", {"id": "integer", "code": "numeric", "x": "double precision"}),
            RIGHT: log.table("r", {"id": "integer", "rate": "numeric"}),
        }
        schemas = {topic: [table.record] for topic, table in self.tables.items()}
        self.inputs = (LEFT, RIGHT) if isinstance(definition, Join) else (LEFT,)
        made = Given("made", self.inputs, "out", tuple(key), schemas)
        self.log = partitions.Log(definition.hops(made), random.randrange)
        self.rows: dict[int, Row] = {}
        for id_ in range(1, 5):
            self._write(RIGHT, {"id": id_}, {"id": id_, "rate": "1." + "0" * id_})

    def _write(self, topic: str, key: Row, after: Row | None) -> None:
        if topic in self.inputs:
            self.log.write(topic, "d" if after is None else "u", key, after, self.tables[topic].record.id)

    def play(self, acts: list[Any]) -> None:
        for act in acts:
            if isinstance(act, int):
                if self.rows.pop(act, None) is not None:
                    self._write(LEFT, {"id": act}, None)
                continue
            id_, code, x, steps = act
            self.rows.pop(id_, None)  # the order is that of changes
            self.rows[id_] = {"id": id_, "code": code, "x": x}
            self._write(LEFT, {"id": id_}, self.rows[id_])
            for _ in range(steps):
                self.log.step()
        self.log.drain()


def by_code(rows: list[Row]) -> dict[Decimal, Row]:
    found = {Decimal(row["code"]): row for row in rows}
    assert len(found) == len(rows), "equal keys are two rows"
    return found


DERIVED: dict[str, tuple[Definition, list[str]]] = {
    "map": (helpers.map_(lambda row: {"code": row["code"], "id": row["id"]}), ["code"]),
    "declared": (
        helpers.map_(
            lambda row: {"code": Decimal(row["code"]), "id": row["id"]}, columns={"code": "numeric(9,3)"}
        ),
        ["code"],
    ),
    "alone": (helpers.map_(lambda row: {"code": row["code"], "id": row["id"]}), ["id", "code"]),
    "join": (
        helpers.join(LEFT, RIGHT, on={"id": "id"}, take=["rate"], keep=["id", "code"], inner=True),
        ["code", "rate"],
    ),
    "aggregate": (helpers.aggregate(by=["code"], id=helpers.max_("id")), []),
}


@pytest.mark.parametrize("name", DERIVED)
@_PROPERTY
@given(acts=_acts, random=st.randoms(use_true_random=False))
def test_equal_numbers_are_one_key(name: str, acts: list[Any], random: Random) -> None:
    definition, key = DERIVED[name]
    source = Source(definition, key, random)
    source.play(acts)
    derived = [{name: row[name] for name in ("code", "id")} for row in source.log.rows()]
    assert {row["code"] for row in derived} <= {"1", "2.5", "0", "100"}
    if name == "alone":
        assert {row["id"]: Decimal(row["code"]) for row in derived} == {
            id_: Decimal(row["code"]) for id_, row in source.rows.items()
        }
        return
    last: dict[Decimal, int] = {}
    for id_, row in source.rows.items():
        code = Decimal(row["code"])
        last[code] = max(last.get(code, 0), id_) if name == "aggregate" else id_
    assert {code: row["id"] for code, row in by_code(derived).items()} == last


def _sum_of(values: list[float]) -> float:
    return -0.0 if all(str(value) == "-0.0" for value in values) else sum(values)


ZEROES: dict[str, tuple[Definition, Callable[[dict[int, Row]], list[Row]]]] = {
    "filter": (
        helpers.filter_(lambda row: True),
        lambda rows: [{"id": id_, "code": row["code"], "x": row["x"]} for id_, row in rows.items()],
    ),
    "join": (
        helpers.join(LEFT, RIGHT, on={"id": "id"}, take=[], keep=["id", "x"]),
        lambda rows: [{"id": id_, "x": row["x"]} for id_, row in rows.items()],
    ),
    "looked up": (
        helpers.join(RIGHT, LEFT, on={"id": "id"}, take=["x"], keep=["id"], inner=True),
        lambda rows: [{"id": id_, "x": row["x"]} for id_, row in rows.items()],
    ),
    "measures": (
        helpers.aggregate(by=["id"], least=helpers.min_("x"), total=helpers.sum_("x")),
        lambda rows: [{"id": id_, "least": row["x"], "total": row["x"]} for id_, row in rows.items()],
    ),
}


@pytest.mark.parametrize("name", ZEROES)
@_PROPERTY
@given(acts=_acts, random=st.randoms(use_true_random=False))
def test_a_zero_keeps_its_sign(name: str, acts: list[Any], random: Random) -> None:
    definition, expected = ZEROES[name]
    source = Source(definition, [], random)
    source.play([act if isinstance(act, int) else (act[0], "1", *act[2:]) for act in acts])
    assert sorted(map(dumps, source.log.rows())) == sorted(map(dumps, expected(source.rows)))


@given(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4))
def test_a_sum_of_minus_zeroes_alone_is_one(values: list[float]) -> None:
    log = Log("shop")
    rows = log.table("l", {"id": "integer", "g": "text", "x": "double precision"})
    made = Given("made", (LEFT,), "out", (), {LEFT: [rows.record]})
    hops = partitions.Log(helpers.aggregate(by=["g"], total=helpers.sum_("x")).hops(made), lambda n: 0)
    for id_, x in enumerate([1.0, *values]):
        hops.write(LEFT, "c", {"id": id_}, {"id": id_, "g": "a", "x": x}, rows.record.id)
    hops.write(LEFT, "d", {"id": 0}, None, rows.record.id)
    hops.drain()
    [row] = hops.rows()
    assert dumps(row["total"]) == dumps(_sum_of(values))


class Shuffled(Rehearsal):
    """Partitions are handled in any order, each in its own."""

    async def play(self, log: Log, random: Random) -> list[Sent]:
        waiting: defaultdict[tuple[str, int], deque[Any]] = defaultdict(deque)
        for place, records in log.records.items():
            waiting[place.topic, place.partition].extend(records)
        found: list[Sent] = []
        while places := [place for place, records in waiting.items() if records]:
            place = places[random.randrange(len(places))]
            record = waiting[place].popleft()
            task, outbox = self._task(record.partition)
            await task.work([(record.topic, [record], record.offset + 1)])
            sent, outbox.sent = outbox.sent, []
            for topic, number, key, value, headers in sent:
                if topic in self._plan.topics:
                    one = self._inner(topic, number, key, value, headers, record.timestamp)
                    waiting[topic, one.partition].append(one)
                else:
                    found.append(Sent(topic, key, value, record))
        await self.close()
        return found


@agent
async def own_key(change: Change) -> Row | None:
    """A row of its code, and one more, of a table that it names."""
    row = change.after
    assert row is not None
    return None if row["code"] == "0" else {"code": row["code"], "id": row["id"], "price": Decimal("1.50")}


@agent
async def named_table(change: Change) -> Any:
    assert change.after is not None
    code = change.after["code"]
    return [] if code == "0" else change.to({"code": code, "id": change.key["id"]}, table="by_code")


@pytest.mark.parametrize("definition", [own_key, named_table], ids=["row", "table"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    acts=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([*NUMBERS, None])), max_size=25),
    random=st.randoms(use_true_random=False),
)
def test_a_functions_rows_with_a_key_of_their_own(
    definition: Definition, acts: list[tuple[int, str | None]], random: Random
) -> None:
    """The row of a code is that of the row that was changed last, whichever partition comes first."""
    log = Log("shop", partitions=3)
    table = log.table("l", {"id": "integer", "code": "numeric"})
    rows = _written(table, acts)
    made = Given("made", (LEFT,), "out", ("code",), {LEFT: [table.record]})
    sent = asyncio.run(Shuffled(definition, made, partitions=3).play(log, random))
    held: dict[bytes | None, Row] = {}
    for one in sent:
        if one.value is None:
            assert held.pop(one.key, None) is not None
        elif one.row is not None:
            held[one.key] = one.row
    expected = {Decimal(code): id_ for id_, code in rows.items() if code != "0"}
    assert {code: row["id"] for code, row in by_code(list(held.values())).items()} == expected
    assert all(row.get("price", "1.50") == "1.50" for row in held.values())


def _written(table: LogTable, acts: list[tuple[int, str | None]]) -> dict[int, str]:
    rows: dict[int, str] = {}
    for id_, code in acts:
        there = rows.pop(id_, None)
        if code is None:
            if there is not None:
                table.delete({"id": id_, "code": there})
            continue
        rows[id_] = code
        (table.create if there is None else table.update)({"id": id_, "code": code})
    return rows
