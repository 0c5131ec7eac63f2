"""What is told of changed catalogues, and what of it outlives the process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streamer.changes.ground import Facts, Ground, MissedFacts, PublicationFacts, TableFacts, dump, load
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
    "facts", [TABLE, PUBLICATION, MissedFacts("public.t"), MissedFacts("public.t", "public.u")]
)
def test_a_record_comes_back_as_it_was(facts: Facts) -> None:
    assert load(dump(facts, 3)) == (3, facts)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"name": "public.u"}, "public.t was renamed to public.u"),
        ({"key": ("v",)}, "the key or the replica identity of public.t changed"),
        ({"places": (8,)}, "public.t was taken out of its publication"),
        ({"partitions": (9,)}, "partitions of public.t were attached"),
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
    assert "`tailrace reset shop`" in found
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
