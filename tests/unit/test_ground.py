"""What is told of changed catalogues, and what of it outlives the process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from streamer.changes.ground import (
    Facts,
    Ground,
    LeafFacts,
    MissedFacts,
    PublicationFacts,
    StaleFacts,
    TableFacts,
    TruncateFacts,
    dump,
    load,
)
from streamer.errors import FatalError
from streamer.postgres.ground import Drift, prints_alike

TABLE = TableFacts(
    1, "public.t", "d", ("id",), (7,), (), ((1, "id", "integer"), (2, "v", "character varying(5)"))
)
PUBLICATION = PublicationFacts(5, "tailrace_shop", (True, True, True, True, True))


def ground(*facts: Facts) -> Ground:
    found = Ground()
    for each in facts:
        found.add(each)
    return found


@pytest.mark.parametrize(
    "facts",
    [
        TABLE,
        PUBLICATION,
        MissedFacts("public.t"),
        MissedFacts("public.t", "public.u"),
        LeafFacts(9, "public.t9", 1, 70, 5, 6),
        TruncateFacts(1, 8),
        StaleFacts(1, "column v of public.t", 9),
        replace(TABLE, parts=((2, "e16400", "sad"),)),
    ],
)
def test_a_record_comes_back_as_it_was(facts: Facts) -> None:
    assert load(dump(facts, 3)) == (3, facts)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"name": "public.u"}, "public.t was renamed to public.u"),
        ({"key": ("v",)}, "the key or the replica identity of public.t changed"),
        ({"places": (8,)}, "public.t was taken out of its publication"),
        ({"columns": (TABLE.columns[0], (2, "w", "text"))}, "column v of public.t was renamed to w"),
        ({"columns": (TABLE.columns[0], (2, "v", "date"))}, "was character varying(5) and is date now"),
        (
            {"columns": (TABLE.columns[0], (3, "v", "text"))},
            "column v of public.t was dropped and made again",
        ),
    ],
)
def test_h22_a_difference_is_a_finding(change: dict[str, Any], finding: str) -> None:
    drift = Drift("shop", ground(TABLE))
    (found,) = drift.compare(ground(replace(TABLE, **change)))
    assert finding in found
    assert "`tailrace reset shop --yes`" in found
    assert drift.compare(ground(TABLE)) == [found]  # what was undone has still been missed


def test_h22_a_table_made_again_is_found_by_every_later_process() -> None:
    recorded, again = ground(TABLE), ground(replace(TABLE, oid=2))
    for _ in range(2):
        drift = Drift("shop", recorded)
        (found,) = drift.compare(again)
        assert "public.t was dropped and made again" in found
        for facts in drift.take_fresh():
            recorded.add(facts)


def test_h22_columns_that_came_later_are_compared_from_then_on() -> None:
    drift = Drift("shop", ground(TABLE))
    longer = replace(TABLE, columns=(*TABLE.columns, (3, "n", "integer")))
    assert drift.compare(ground(longer)) == []
    assert drift.take_fresh() == [longer]
    (found,) = drift.compare(ground(replace(TABLE, columns=(*TABLE.columns, (3, "n", "text")))))
    assert "column n of public.t was integer and is text now" in found


@pytest.mark.parametrize("now", [ground(), ground(replace(PUBLICATION, oid=6))])
def test_h04_another_publication_is_an_error(now: Ground) -> None:
    with pytest.raises(FatalError, match="tailrace_shop was dropped or made again"):
        Drift("shop", ground(PUBLICATION)).check_publications(now)


def test_what_alter_type_leaves_alike() -> None:
    assert prints_alike("integer", "bigint")
    assert prints_alike("character varying(5)", "text")
    assert not prints_alike("bigint", "integer")
    assert not prints_alike("numeric(10,2)", "numeric(10,1)")
    assert not prints_alike("real", "double precision")
    assert not prints_alike("text", "texture")


ROOT = replace(TABLE, partitions=(9,))
LEAF = LeafFacts(9, "public.t9", root=1, file=70, lsn=100)


@dataclass(frozen=True)
class Done:
    """A repair and a backfill of one table: where the one's comparison began, when the other began."""

    table: str
    repaired_lsn: int = 0
    began_us: int = 0

    def repaired(self, table: str, lsn: int) -> bool:
        return table == self.table and self.repaired_lsn >= lsn

    def refilled(self, table: str, since_us: int) -> bool:
        return table == self.table and self.began_us > since_us


def look(drift: Drift, lsn: int, *leaves: LeafFacts, suspect: bool = True, shown: int = 0) -> list[str]:
    """One look, at `lsn`, while the stream has shown everything up to `shown`."""
    now = ground(replace(ROOT, partitions=tuple(leaf.oid for leaf in leaves)), *leaves)
    now.lsn = lsn
    strange = frozenset(each.leaf.oid for each in drift.partitions.strange(now))
    return drift.compare(now, strange if suspect else frozenset(), shown_lsn=shown)


def test_h05_a_partition_emptied_by_itself_is_a_finding_of_every_later_process() -> None:
    drift = Drift("shop", recorded := ground(ROOT, LEAF))
    other = replace(LEAF, file=71, lsn=200)
    assert look(drift, 201, other, shown=150) == []  # the stream may still show that it was the root
    assert look(drift, 301, replace(other, lsn=300), shown=200) == []
    for _ in range(2):
        (found,) = look(drift, 401, replace(other, lsn=400), shown=201)
        assert "partition public.t9 of public.t was truncated by itself" in found
        for facts in drift.take_fresh():
            recorded.add(facts)
        drift = Drift("shop", recorded)
    drift.partitions.truncated(ROOT.oid, 500)
    assert look(drift, 601, replace(other, lsn=600), shown=601) == []


def test_h05_partitions_emptied_with_their_root_are_no_finding() -> None:
    other = replace(LEAF, file=71, lsn=200)
    for shown_first in (True, False):
        drift = Drift("shop", ground(ROOT, LEAF))
        if not shown_first:
            assert look(drift, 201, other, shown=150) == []
        drift.partitions.truncated(ROOT.oid, 180)
        assert look(drift, 301, replace(other, lsn=300), shown=300) == []
        (found,) = look(drift, 401, replace(other, file=72, lsn=400), shown=401)  # the next one, alone
        assert "truncated by itself" in found


def test_h05_a_partition_written_anew_with_its_rows_is_no_finding_and_hides_none() -> None:
    drift = Drift("shop", ground(ROOT, LEAF))
    assert look(drift, 201, replace(LEAF, file=71, lsn=200), suspect=False, shown=300) == []
    emptied = replace(LEAF, file=72, lsn=300)
    assert look(drift, 301, emptied, shown=250) == []
    vacuumed = replace(LEAF, file=73, lsn=400)
    assert len(look(drift, 401, vacuumed, suspect=False, shown=401)) == 1
    assert len(look(drift, 501, replace(vacuumed, file=74, lsn=500), suspect=False, shown=501)) == 1


def test_h05_a_repair_behind_it_ends_the_finding() -> None:
    drift = Drift("shop", recorded := ground(ROOT, replace(LEAF, emptied_lsn=90)))
    now = ground(ROOT, LEAF)
    assert len(drift.compare(now, cures=Done("public.u", 95, 95))) == 1
    assert len(drift.compare(now, cures=Done("public.t", 89, 95))) == 1
    assert drift.compare(now, cures=Done("public.t", 90)) == []
    assert recorded.leaves[LEAF.oid].emptied_lsn == 0


def test_h22_a_partition_that_comes_empty_belongs_to_its_root_from_then_on() -> None:
    drift = Drift("shop", ground(ROOT, LEAF))
    new = LeafFacts(10, "public.t10", root=1, file=80, lsn=200)
    assert look(drift, 201, LEAF, new, suspect=False) == []
    assert look(drift, 301, LEAF, new, suspect=False) == []


def test_h05_a_partition_that_goes_takes_its_rows_from_the_source_alone() -> None:
    drift = Drift("shop", recorded := ground(replace(ROOT, partitions=(9, 10)), LEAF, replace(LEAF, oid=10)))
    for lsn in (201, 301):  # the root has none left then, and a later process says the same
        found = look(drift, lsn)
        assert [f.startswith("partition public.t9 of public.t was detached or dropped") for f in found] == [
            1,
            1,
        ]
        assert all("`tailrace reconcile FLOW --repair --delete-extra`" in f for f in found)
        assert [leaf.emptied_lsn for leaf in recorded.leaves.values()] == [201, 201]
        drift = Drift("shop", recorded)
    assert len(drift.compare(ground(ROOT, LEAF), frozenset([9]), now_us=7)) == 3, (
        "back again, with other rows"
    )
    gone = ground(replace(ROOT, partitions=()))
    gone.lsn = 401
    assert len(drift.compare(gone, cures=Done("public.t", 400))) == 1, "the other is mended"
    drift.partitions.truncated(ROOT.oid, 500)
    assert drift.compare(gone) == []
    keyless = replace(ROOT, key=(), identity="f")
    (found,) = Drift("shop", ground(keyless, replace(LEAF, emptied_lsn=90))).compare(ground(keyless, LEAF))
    assert "still in the targets. They go with a TRUNCATE of public.t, or a reset" in found


def test_h22_a_partition_that_comes_with_rows_is_a_finding_until_they_are_published() -> None:
    drift = Drift("shop", recorded := ground(ROOT, LEAF))
    new = LeafFacts(10, "public.t10", root=1, file=80, lsn=200)
    both = ground(replace(ROOT, partitions=(9, 10)), LEAF, new)
    for suspect in (
        frozenset([10]),
        frozenset[int](),
    ):  # its rows may be gone later, what was missed has been
        (found,) = drift.compare(both, suspect, now_us=7)
        assert "partition public.t10 of public.t was attached with rows" in found
        assert "`tailrace backfill shop public.t`" in found
        drift = Drift("shop", recorded)
    assert len(drift.compare(both, cures=Done("public.t", 300, 7))) == 1
    assert drift.compare(both, cures=Done("public.t", 0, 8)) == []
    assert drift.compare(both) == []
