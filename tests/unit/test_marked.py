"""Which indexes leave out rows that a soft delete has marked."""

from __future__ import annotations

import pytest

from streamer.changes.marked import leaves_out_marked


@pytest.mark.parametrize(
    "predicate",
    [
        "(gone_at IS NULL)",
        "gone_at is null",
        '("gone_at" IS NULL)',
        "[Gone_At]  IS\nNULL",
        "((gone_at IS NULL) AND (active = true))",
        "((name <> 'a OR b'::text) AND ((gone_at IS NULL)))",
        "(((a = 1) OR (b = 2)) AND (gone_at IS NULL))",
    ],
)
def test_an_index_of_live_rows(predicate: str) -> None:
    assert leaves_out_marked(predicate, "gone_at")


@pytest.mark.parametrize(
    "predicate",
    [
        "",
        "(active = true)",
        "(gone_at IS NOT NULL)",
        "(NOT (gone_at IS NULL))",
        "((gone_at IS NULL) OR (active = true))",
        "(((gone_at IS NULL) OR (active = true)) AND (b = 2))",
        "(other_gone_at IS NULL)",
        "(name = ' AND gone_at IS NULL AND '::text)",
        "CASE WHEN (gone_at IS NULL) THEN true ELSE active END",
    ],
)
def test_an_index_that_has_others_or_may_have(predicate: str) -> None:
    assert not leaves_out_marked(predicate, "gone_at")
