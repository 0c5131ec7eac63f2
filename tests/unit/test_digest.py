"""Digests of ranges: they add up, whatever the order, and a server's signed sums are the same as ours."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.reconcile.canonical import canonical, field, row_digest, row_text
from consumers.reconcile.digest import EMPTY, LANE_BITS, RangeDigest, RowHash, total
from streamer.errors import BadRecordError

LANE = st.integers(0, 2**LANE_BITS - 1)
HASHES = st.lists(st.tuples(LANE, LANE), max_size=8)


def signed(lane: int) -> int:
    """As a bigint has the lane's bits."""
    return lane - 2**LANE_BITS if lane >= 2 ** (LANE_BITS - 1) else lane


@given(HASHES, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(hashes: list[tuple[int, int]], random: Random) -> None:
    shuffled = list(hashes)
    random.shuffle(shuffled)
    assert RangeDigest.of_hashes(shuffled) == RangeDigest.of_hashes(hashes)


@given(HASHES, HASHES)
def test_ranges_add_up_and_come_apart(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    left, right = RangeDigest.of_hashes(one), RangeDigest.of_hashes(other)
    whole = RangeDigest.of_hashes(one + other)
    assert left + right == total([left, right]) == whole
    assert whole - left == right
    assert whole - whole == EMPTY == RangeDigest.of_hashes([])


@given(HASHES)
def test_a_servers_sums_of_signed_lanes_are_the_same(hashes: list[tuple[int, int]]) -> None:
    sums = [sum(signed(row[lane]) for row in hashes) for lane in (0, 1)]
    expected = RangeDigest.of_hashes(hashes)
    assert RangeDigest.of_sums(len(hashes), sums[0], sums[1]) == expected
    assert RangeDigest.of_sums(len(hashes), Decimal(sums[0]), Decimal(sums[1])) == expected
    assert [RowHash.of(signed(a), signed(b)) for a, b in hashes] == hashes


def test_a_range_without_rows_is_empty() -> None:
    assert RangeDigest.of_sums(0, None, None) == EMPTY


@given(st.tuples(LANE, LANE))
def test_twins_do_not_cancel_out(row: tuple[int, int]) -> None:
    """Two rows that are the same are not no row: xor would lose them."""
    assert RangeDigest.of_hashes([row, row]) != EMPTY
    assert RangeDigest.of_hashes([row, row]) != RangeDigest.of_hashes([row])


def test_the_lanes_are_the_halves_of_md5() -> None:
    digest = hashlib.md5(b'(1,,"","a b")').digest()
    assert row_digest(["1", None, "", "a b"]) == (
        int.from_bytes(digest[:8], "big"),
        int.from_bytes(digest[8:], "big"),
    )


@given(*[st.lists(st.none() | st.text('a,()"\\ \n', max_size=4), min_size=2, max_size=3)] * 2)
def test_a_row_has_one_text(one: list[str | None], other: list[str | None]) -> None:
    assert (row_text(one) == row_text(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        ("", '""'),
        ("a", "a"),
        ("a b", '"a b"'),
        ('"', '""""'),
        ("\\", '"\\\\"'),
        ("\u00a0", "\u00a0"),
    ],
)
def test_fields(text: str | None, expected: str) -> None:
    assert field(text) == expected


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("number", 42, "42"),
        ("float", 1.5, "\\x3ff8000000000000"),
        ("float", -0.0, "\\x8000000000000000"),
        ("float", 0, "\\x0000000000000000"),
        ("float", "NaN", "\\x7ff8000000000000"),
        ("float", "-Infinity", "\\xfff0000000000000"),
        ("bool", True, "t"),
        ("numeric", "1.00", "1.00"),
        ("money", "-1234.11", "-1234.11"),
        ("bytea", "AQI=", "\\x0102"),
        ("timestamptz", "2016-11-04T11:51:30.5Z", "2016-11-04 11:51:30.5+00"),
        ("timestamp", "0044-03-15T12:00:00Z BC", "0044-03-15 12:00:00 BC"),
        ("timetz", "11:51:30Z", "11:51:30+00"),
        ("array:text", ["a", None, "", "null", "a b", "\u00a0"], '{a,NULL,"","null","a b",\u00a0}'),
        ("array:number", "[0:1]={1,2}", "[0:1]={1,2}"),
        ("array:money", "[0:0]={$1.00}", "[0:0]={1.00}"),
        ("text", None, None),
    ],
)
def test_canonical_texts(kind: str, value: object, expected: str | None) -> None:
    assert canonical(kind, value) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("number", "42"),
        ("float", "1.5"),
        ("float", True),
        ("vector", "[1]"),
        ("vector", [1e300]),
        ("array:float", [[1], [1, 2]]),
        ("array:number", "{1}"),
        ("array:number", 5),
    ],
)
def test_another_shape_is_a_bad_record(kind: str, value: object) -> None:
    with pytest.raises(BadRecordError):
        canonical(kind, value)
