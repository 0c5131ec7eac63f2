"""The records of backfills: what is written is read back, parts stay below their limit, runs are joined."""

from __future__ import annotations

import orjson
import pytest

from streamer.changes.backfill import (
    KEYS_PART_BYTES,
    Progress,
    Request,
    Runs,
    State,
    Wanted,
    Wish,
    key_parts,
    keys_key,
    load_keys,
    manual_run,
    part_key,
    reread_run,
    split_parts,
    table_run,
)
from streamer.errors import FatalError

REQUEST = Request(
    "r1", "shop", schema="public", table="orders", where="a > 1", rate=100, by="anna", asked_us=5
)
PROGRESS = Progress(
    State.RUNNING, cursor=("a", "7"), owed=((1, "x"),), chunks=3, rows=30, estimated_rows=100, began_us=1
)


def test_every_record_is_read_back() -> None:
    assert Request.load(REQUEST.dump()) == REQUEST
    assert Progress.load(PROGRESS.dump()) == PROGRESS
    assert Wish.load(Wish(Wanted.PAUSE, "anna", 7).dump()) == Wish(Wanted.PAUSE, "anna", 7)
    assert REQUEST.key() == b'{"source":"shop","run":"r1","part":"request"}'


def test_a_field_of_a_later_program_is_passed_over_and_another_format_is_not() -> None:
    raw = orjson.loads(REQUEST.dump())
    assert Request.load(orjson.dumps({**raw, "colour": "red"})) == REQUEST
    with pytest.raises(FatalError, match="has format 2, this program reads 1"):
        Request.load(orjson.dumps({**raw, "format": 2}))


def test_keys_are_split_below_the_limit_and_joined_in_their_order() -> None:
    keys = [(n, "x" * 1000) for n in range(2000)]
    request, parts = split_parts(REQUEST, keys)
    assert (request.keyed, request.key_parts) == (True, len(parts))
    assert len(parts) > 3
    assert max(map(len, parts)) <= KEYS_PART_BYTES + 100
    assert [key for part in parts for key in load_keys(part)] == keys
    assert list(key_parts([])) == []


def test_runs_are_joined_from_their_records_and_forgotten_with_them() -> None:
    runs = Runs("shop")
    request, parts = split_parts(REQUEST, [(1,), (2,)])
    assert runs.take(part_key("other", "r1", "request"), REQUEST.dump()) is None
    runs.take(keys_key("shop", "r1", 0), parts[0])
    assert runs.asked() == []
    run = runs.take(request.key(), request.dump())
    assert run is not None
    assert (run.whole, run.state, run.wanted, run.keys()) == (True, State.WAITING, Wanted.RUN, [(1,), (2,)])
    runs.take(part_key("shop", "r1", "wish"), Wish(Wanted.CANCEL, "anna", 7).dump())
    runs.take(part_key("shop", "r1", "progress"), PROGRESS.dump())
    assert (run.state, run.wanted) == (State.RUNNING, Wanted.CANCEL)
    for key in run.part_keys():
        runs.take(key, None)
    assert runs.by_run == {}


def test_a_keyed_run_is_not_whole_before_all_of_its_parts() -> None:
    runs = Runs()
    request, parts = split_parts(REQUEST, [(n, "x" * 1000) for n in range(2000)])
    run = runs.take(request.key(), request.dump())
    assert run is not None
    for number, part in enumerate(parts):
        assert not run.whole
        runs.take(keys_key("shop", "r1", number), part)
    assert run.whole


def test_the_oldest_request_comes_first() -> None:
    runs = Runs()
    for name, asked_us in (("b", 2), ("c", 1), ("a", 2)):
        request = Request(name, "shop", schema="s", table="t", asked_us=asked_us)
        runs.take(request.key(), request.dump())
    assert [run.run for run in runs.asked()] == ["c", "a", "b"]


def test_run_ids() -> None:
    early, late = manual_run(1_700_000_000_000_000, 0x1F3A2B), manual_run(1_700_000_001_000_000, 0)
    assert early == "20231114T221320-3a2b"
    assert early < late
    assert table_run("shop", "public", "t", 3) == "table:shop.public.t:3"
    assert reread_run("dw", "t", 1, [[1], [2]]) == reread_run("dw", "t", 1, [[2], [1]])
    assert reread_run("dw", "t", 1, [[1]]) != reread_run("dw", "t", 1, [["1"]])
