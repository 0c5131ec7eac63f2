"""The file of hashes that stands for a store without a query language."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import pytest

from consumers.reconcile.canonical import row_digest
from consumers.reconcile.digest import RangeDigest
from consumers.reconcile.groups import Grouping
from consumers.reconcile.sides import spooled
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
    """For temporary files, of Python and of SQLite."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


async def test_digests_are_those_of_the_rows_and_the_last_of_a_key_counts() -> None:
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
    await side.close()


async def test_the_file_has_no_name_that_could_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is ended in any way leaves nothing behind."""
    monkeypatch.setattr(spooled, "CACHE_KIB", 64)  # the rows are written out
    side = SpooledSide(Store([[row(n) for n in range(ROWS)]]))
    assert await side.estimate() == ROWS
    assert files_in(folder) == []
    await side.close()


async def test_groups_count_each_key_once() -> None:
    side = SpooledSide(Store([[row(1), row(2, "b")], [row(1, "c"), row(3, None)]]))
    assert await side.groups(Grouping(("kind",), "", (), 0)) == {("a",): [1], ("b",): [1], (None,): [1]}


async def test_no_room_for_it_is_said_with_the_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "CACHE_KIB", 64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    side = SpooledSide(Store([[row(n) for n in range(ROWS)]]))
    try:
        with pytest.raises(RetryableError, match="name another folder in TMPDIR"):
            await side.estimate()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await side.close()
