"""Agents whose rows have a key of their own, which rows of several partitions may say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consumers.processors import (
    Change,
    Changes,
    Derived,
    Given,
    Row,
    agent,
    filter_,
    flatten,
    join,
    map_,
    route,
)
from consumers.processors.context import Definition
from consumers.processors.hops import hops_of
from consumers.processors.operators.contributors import rank_of
from consumers.processors.testing import derive
from consumers.testing import Log
from streamer.errors import ConfigError, FatalError
from tests.harness.feeder import Feeder
from tests.harness.processing import NAME, config_of, processing

ROWS, SWAPS = 12, 60
END_S = 30.0


@agent
async def by_code(change: Change) -> Row | None:
    return change.after


@agent
async def streamed(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        yield change.to(change.after)


async def test_rows_that_swap_their_derived_keys_stay(feeder: Feeder, tmp_path: Path) -> None:
    """The delete of a derived key comes of one partition, its next row of another one."""
    columns = [("id", "integer", "number"), ("code", "numeric", "numeric")]
    orders = await feeder.table("orders", columns)
    codes = list(range(ROWS))
    for id_ in codes:
        orders.create({"id": id_, "code": f"{id_}"}, lsn=1 + id_)
    for number in range(SWAPS):
        one, other = number % ROWS, (number * 5 + 1) % ROWS
        if one == other:
            continue
        codes[one], codes[other] = codes[other], codes[one]
        for id_ in (one, other):
            code = f"{codes[id_]}.{'0' * (number % 3)}".rstrip(".")
            orders.update({"id": id_, "code": code}, lsn=100 + number, ordinal=id_)
    await feeder.flush()
    config = config_of(feeder, [orders.topic], tmp_path, key=["code"])
    async with processing(config, by_code) as made:
        await made.rows({f'{{"code":"{c}"}}': {"id": id_, "code": f"{c}"} for id_, c in enumerate(codes)})


def log_of(**row: Any) -> Log:
    log = Log("shop", partitions=2)
    log.table("l", {"id": "integer", "code": "numeric"}).create({"id": 1, "code": "1.0", **row})
    return log


def test_a_stream_cannot_have_a_key_that_others_say() -> None:
    with pytest.raises(AssertionError, match=r"does not hold its input row's, id: rows of other partitions"):
        derive(streamed, log_of(), key=["code"])
    assert derive(streamed, log_of(), key=["id", "code"]).rows == [{"id": 1, "code": "1"}]
    single = Log("shop", partitions=1)
    single.table("l", {"id": "integer", "code": "numeric"}).create({"id": 1, "code": "1.0"})
    assert derive(streamed, single, key=["code"]).rows == [{"id": 1, "code": "1"}]


def test_a_function_names_a_key_of_its_own_in_the_config() -> None:
    own = agent(lambda change: change.to(change.after, key={"code": change.after["code"]}))
    with pytest.raises(AssertionError, match=r"does not hold .*\n?.*the columns in the processor's `key:`"):
        derive(own, log_of())
    assert derive(own, log_of(), key=["code"]).rows == [{"id": 1, "code": "1"}]
    changed = agent(lambda change: {"id": 7})
    with pytest.raises(AssertionError, match="the body changed 'id', which is of the key"):
        derive(changed, log_of(), key=["id"])


def test_a_key_of_its_own_needs_exactly_once() -> None:
    with pytest.raises(ConfigError, match="who says it is told exactly once"):
        hops_of(by_code, Given("made", ("t",), "out", ("code",)), "at_least_once")
    assert len(hops_of(streamed, Given("made", ("t",), "out", ("code",)), "at_least_once")) == 1
    assert len(hops_of(streamed, Given("made", ("t", "u"), "out", ()), "at_least_once")) == 1
    for of in (by_code, map_(lambda row: row)):
        assert len(hops_of(of, Given("made", ("t",), "out", ()), "at_least_once")) == 1
        for given in (Given("made", ("t", "u"), "out", ()), Given("made", ("t",), "out", (), grows=True)):
            with pytest.raises(ConfigError, match="or several inputs"):
                hops_of(of, given, "at_least_once")


WAYS = {
    "map": map_(lambda row: row),
    "filter": filter_(lambda row: True),
    "agent": agent(lambda change: change.after),
    "agent's to": agent(lambda change: [change.to(change.after)]),
}


@pytest.mark.parametrize(
    ("of", "key"),
    [
        *(pytest.param(of, key, id=f"{name} {key}") for name, of in WAYS.items() for key in ((), ("id",))),
        pytest.param(route(lambda row: "all"), (), id="route"),
    ],
)
def test_rows_of_two_inputs_say_one_derived_row(of: Definition, key: tuple[str, ...]) -> None:
    """The last one shows; when it goes, the other comes back; and only when both are gone is it deleted."""
    log = Log("shop")
    now, old = (log.table(name, {"id": "integer", "v": "text"}) for name in ("now", "old"))
    old.create({"id": 1, "v": "old"})
    now.create({"id": 1, "v": "now"})
    old.create({"id": 2, "v": "alone"})
    assert _values(of, log, key) == {1: "now", 2: "alone"}
    old.update({"id": 1, "v": "old again"})
    assert _values(of, log, key) == {1: "old again", 2: "alone"}
    old.delete({"id": 1})
    assert _values(of, log, key) == {1: "now", 2: "alone"}
    now.truncate()
    old.delete({"id": 2})
    assert _values(of, log, key) == {}


def _values(of: Definition, log: Log, key: tuple[str, ...]) -> dict[int, str]:
    return {row["id"]: row["v"] for row in derive(of, log, key=key).rows}


@pytest.mark.parametrize(
    "of",
    [
        map_(lambda row: {"code": row["code"], "id": row["id"]}),
        agent(lambda change: {"code": change.after["code"], "id": change.after["id"]}),
    ],
    ids=["map", "agent"],
)
def test_the_row_that_was_changed_last_shows_though_it_derives_the_same(of: Definition) -> None:
    log = Log("shop")
    orders = log.table("orders", {"id": "integer", "code": "text", "note": "text"})
    for id_ in (1, 2):
        orders.create({"id": id_, "code": "a", "note": ""})
    assert derive(of, log, key=["code"]).rows == [{"code": "a", "id": 2}]
    orders.update({"id": 1, "code": "a", "note": "seen again"})
    assert derive(of, log, key=["code"]).rows == [{"code": "a", "id": 1}]


JOINED = join("shop.public.orders", "shop.public.kinds", on={"kind": "id"}, take=["name"], inner=True)


@pytest.mark.parametrize(
    "of", [map_(lambda row: row), agent(lambda change: change.after), JOINED], ids=["map", "agent", "join"]
)
def test_a_backfill_does_not_say_who_was_changed_last(of: Definition) -> None:
    log = Log("shop")
    kinds = log.table("kinds", {"id": "integer", "name": "text"})
    orders = log.table("orders", {"id": "integer", "code": "text", "kind": "integer"})
    if of is JOINED:
        kinds.create({"id": 1, "name": "large"})
    for id_ in (2, 1):
        orders.create({"id": id_, "code": "a", "kind": 1})

    def shown() -> list[int]:
        return [row["id"] for row in derive(of, log, key=["code"]).rows]

    assert shown() == [1]
    for id_ in (1, 2):
        orders.read({"id": id_, "code": "a", "kind": 1}, lsn=500)
    assert shown() == [1]
    orders.delete({"id": 1})
    assert shown() == [2]


def test_of_several_sources_the_one_that_was_committed_last_shows() -> None:
    """Their versions have no common order: a log's position says nothing of another server's."""
    early, late = (
        Change("t", 0, 0, "u", {}, None, {}, version, commit_us, "s")
        for version, commit_us in (((9, 900, 0), 5), ((1, 1, 0), 6))
    )
    two, one = ("shop.public.orders", "derived"), ("shop.public.orders", "shop.public.archive")
    assert rank_of(early, two) < rank_of(late, two)
    assert rank_of(early, one) > rank_of(late, one)


def test_inputs_with_other_keys_need_one_of_their_own() -> None:
    log = Log("shop")
    log.table("now", {"id": "integer", "code": "text"}).create({"id": 1, "code": "a"})
    log.table("old", {"id": "integer", "code": "text"}, key=("code",)).create({"id": 2, "code": "b"})
    whole = map_(lambda row: row)
    with pytest.raises(
        FatalError, match=r"shop.public.\w+ have the key \w+, and rows of .* the key"
    ) as raised:
        derive(whole, log)
    assert "`key:`" in raised.value.fix
    assert len(derive(whole, log, key=["id"]).rows) == 2
    assert len(derive(route(lambda row: "now" if row["id"] == 1 else "old"), log).rows) == 2


def test_plain_rows_of_two_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="flatten of 2 topics"):
        hops_of(flatten(), Given("made", ("t", "u"), "out", ()), "exactly_once")


async def test_a_second_input_asks_for_a_reset(feeder: Feeder, tmp_path: Path) -> None:
    """What was derived of the first alone is not settled with the second's."""
    columns = [("id", "integer", "number"), ("v", "text", "text")]
    orders, archive = await feeder.table("orders", columns), await feeder.table("archive", columns)
    orders.create({"id": 1, "v": "now"}, lsn=1)
    await feeder.flush()
    async with processing(config_of(feeder, [orders.topic], tmp_path), map_(lambda row: row)) as made:
        await made.rows({'{"id":1}': {"id": 1, "v": "now"}})
    both = config_of(feeder, [orders.topic, archive.topic], tmp_path)
    async with processing(both, map_(lambda row: row)) as made:
        with pytest.raises(ConfigError, match=r"its state was made without .*__hop1") as raised:
            async with asyncio.timeout(END_S):
                await asyncio.shield(made.task)
    assert f"tailrace reset {NAME}" in raised.value.fix
