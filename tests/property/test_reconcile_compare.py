"""The comparison finds every key that differs, and no other, however two sides are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.reconcile import compare as module
from consumers.reconcile.canonical import row_digest
from consumers.reconcile.compare import compare
from consumers.reconcile.digest import RangeDigest, RowHash
from consumers.reconcile.sides.base import Bucket, Key, KeyRange, Part, Row, buckets, key_hash, ranges_between

Table = dict[int, str]


class Memory:
    """A side of rows in memory, by number."""

    place, read_bytes = "memory", 0

    def __init__(self, rows: Mapping[int, str]) -> None:
        self._rows = dict(sorted(rows.items()))
        self.listed = 0

    async def close(self) -> None:
        return

    async def estimate(self) -> int:
        return len(self._rows)

    def _of(self, part: Part) -> dict[int, str]:
        if isinstance(part, Bucket):
            return {n: v for n, v in self._rows.items() if key_hash((str(n),)) % part.of == part.at}
        low = -(10**9) if part.low is None else int(part.low[0])
        high = 10**9 if part.high is None else int(part.high[0])
        return {n: v for n, v in self._rows.items() if low <= n < high}

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        return [RangeDigest.of_hashes([_hash(n, v) for n, v in self._of(part).items()]) for part in parts]

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        keys = list(self._of(part))
        step = max(1, -(-len(keys) // parts))
        return ranges_between([(str(n),) for n in keys[step::step]], part)

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        found = {(str(n),): _hash(n, v) for part in parts for n, v in self._of(part).items()}
        self.listed += len(found)
        return found

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        return {}


def _hash(number: int, value: str) -> RowHash:
    return row_digest([str(number), value])


tables = st.dictionaries(st.integers(-50, 300), st.sampled_from(["", "a", "b"]), max_size=80)
cuts = st.lists(st.integers(-60, 310), unique=True, max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    tables, tables, st.lists(st.integers(-60, 310), unique=True, max_size=6), st.integers(0, 7), st.booleans()
)
async def test_what_differs_is_found_and_nothing_else(
    source: Table, changes: Table, bounds: list[int], of: int, same_start: bool
) -> None:
    target = {**source, **changes} if same_start else changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HASHES_ROWS", 3)
        patch.setattr(module, "SPLIT", 4)
        parts = buckets(of) if of else ranges_between([(str(n),) for n in sorted(bounds)])
        found = await compare(Memory(source), Memory(target), parts)
    expected = {(str(n),) for n in source.keys() | target.keys() if source.get(n) != target.get(n)}
    assert found.suspects == expected
    assert (found.source_rows, found.target_rows, found.cut) == (len(source), len(target), False)


async def test_few_faults_are_found_by_listing_few_rows() -> None:
    source = dict.fromkeys(range(40000), "a")
    target = source | {5: "b", 7: "b", 39_000: "b"}
    ours, theirs = Memory(source), Memory(target)
    found = await compare(ours, theirs, [KeyRange()])
    assert found.suspects == {("5",), ("7",), ("39000",)}
    assert ours.listed <= 2_500


@pytest.mark.parametrize(("source", "target"), [(12_000, 0), (0, 12_000)])
async def test_one_empty_side_is_cut_by_the_other(source: int, target: int) -> None:
    ours, theirs = Memory(dict.fromkeys(range(source), "a")), Memory(dict.fromkeys(range(target), "a"))
    found = await compare(ours, theirs, [KeyRange()])
    assert len(found.suspects) == 12_000
    found = await compare(ours, theirs, [KeyRange()], room=4_000)
    assert found.cut
    assert 4_000 <= len(found.suspects) < 12_000 + module.HASHES_ROWS


async def test_what_the_target_may_keep_is_no_suspect() -> None:
    ours, theirs = Memory({1: "a", 2: "a"}), Memory({2: "b", 3: "a"})
    found = await compare(ours, theirs, [KeyRange()], keeps_extra=True)
    assert found.suspects == {("1",), ("2",)}
