"""Names of tables, as keys and as they are printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.commands.backfill_tables import _find
from streamer.changes.backfill import Request
from streamer.changes.names import parts, spelt

NAMES = st.text(st.sampled_from('a."B '), min_size=1, max_size=6)


@given(NAMES, NAMES)
def test_a_name_comes_back_as_it_was(schema: str, table: str) -> None:
    assert parts(spelt(schema, table)) == (schema, table)


@pytest.mark.parametrize(
    ("schema", "table", "name"),
    [
        ("public", "orders", "public.orders"),
        ("public", "Große Aufträge", "public.Große Aufträge"),
        ("a.b", "c", '"a.b".c'),
        ("a", "b.c", 'a."b.c"'),
        ("public", 'o"o', 'public."o""o"'),
    ],
)
def test_no_two_tables_are_spelt_alike(schema: str, table: str, name: str) -> None:
    assert spelt(schema, table) == name
    assert Request("r", "shop", schema, table).place == name


def test_a_table_is_found_as_it_is_spelt_and_as_it_is() -> None:
    known = ['"a.b".c', 'a."b.c"', "public.t", 'public."t.u"']
    assert _find(known, '"a.b".c') == ['"a.b".c']
    assert _find(known, "a.b.c") == ['"a.b".c', 'a."b.c"']
    assert _find(known, "public.t.u") == _find(known, "t.u") == ['public."t.u"']
    assert _find(known, "t") == ["public.t"]
