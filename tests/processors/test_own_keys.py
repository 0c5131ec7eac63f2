"""Agents whose rows have a key of their own, which rows of several partitions may say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consumers.processors import Change, Changes, Derived, Given, Row, agent
from consumers.processors.hops import hops_of
from consumers.processors.testing import derive
from consumers.testing import Log
from streamer.errors import ConfigError
from tests.harness.feeder import Feeder
from tests.harness.processing import config_of, processing

ROWS, SWAPS = 12, 60


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
    with pytest.raises(ConfigError, match="who says them is told exactly once"):
        hops_of(by_code, Given("made", ("t",), "out", ("code",)), "at_least_once")
    assert len(hops_of(streamed, Given("made", ("t",), "out", ("code",)), "at_least_once")) == 1
