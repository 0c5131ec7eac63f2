"""The file of hashes that stands for a store without a query language."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import pytest

from consumers.reconcile.canonical import row_digest
from consumers.reconcile.digest import RangeDigest
from consumers.reconcile.groups import Grouping
from consumers.reconcile.sides.base import WHOLE, Bucket, Key, Row, buckets, key_hash
from consumers.reconcile.sides.spooled import Found, SpooledSide
from streamer.errors import RetryableError

ROWS = 5_000


class Store:
    place = "a store"
    read_bytes = 0

    def __init__(self, batches: Sequence[list[Found]]) -> None:
        self._batches = batches
        self.walks = 0

    def names(self) -> Sequence[str]:
        return ["id", "kind"]

    async def all_rows(self) -> AsyncGenerator[list[Found], None]:
        self.walks += 1
        for batch in self._batches:
            yield batch

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        return {}


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def row(number: int, kind: str | None = "a") -> Found:
    return (str(number),), (str(number), kind)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_digests_are_those_of_the_rows_and_the_last_of_a_key_counts(folder: Path) -> None:
    first, again = [row(n) for n in range(ROWS)], [row(7, None), row(8, "b")]
    store = Store([first, [], again])
    side = SpooledSide(store)
    wanted = {key: row_digest(texts) for key, texts in first + again}
    (whole,) = await side.digest([WHOLE])
    assert whole == RangeDigest.of_hashes(wanted.values())
    parts = buckets(7)
    digests = await side.digest(parts)
    assert [digest.count for digest in digests] == [
        sum(key_hash(key) % 7 == part.at for key in wanted) for part in parts
    ]
    assert sum(digests, RangeDigest()) == whole
    two = [Bucket(7, 2), Bucket(7, 5)]
    assert await side.digest(two) == [digests[2], digests[5]]
    assert await side.hashes(two) == {k: h for k, h in wanted.items() if key_hash(k) % 7 in (2, 5)}
    assert (await side.estimate(), store.walks) == (ROWS, 1)
    assert files_in(folder)
    await side.close()
    assert not files_in(folder)


async def test_groups_count_each_key_once(folder: Path) -> None:
    side = SpooledSide(Store([[row(1), row(2, "b")], [row(1, "c"), row(3, None)]]))
    assert await side.groups(Grouping(("kind",), "", (), 0)) == {("a",): [1], ("b",): [1], (None,): [1]}
    assert not files_in(folder)


async def test_a_folder_that_takes_no_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    with pytest.raises(RetryableError, match="name another folder in TMPDIR"):
        await SpooledSide(Store([[row(1)]])).estimate()
