"""Slots of keys, and the tags that are in the names of what is kept beside rows."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from consumers.targets.redis_layout import CLUSTER, Names
from consumers.targets.redis_marks import STATE_KEYS, mark_key
from consumers.targets.redis_slots import SLOTS, names_in, slot_of, table_keys, tags


@given(st.text(st.characters(codec="utf-8")))
@example("user:{7}:profile")
@example("{}")
@example("{}{a}")
@example("a{b")
@example("a}{b}c}")
@example("{{a}}")
def test_the_slot_of_a_key_is_the_servers(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


def test_each_slot_has_a_tag_of_its_own_which_never_changes() -> None:
    """They are names in stores: with others, versions of rows would not be found."""
    assert [key_slot(tag.encode()) for tag in tags()] == list(range(SLOTS))
    assert [tags()[slot] for slot in (0, 1, 5798, 16383)] == PINNED


PINNED = ["3560", "22179", "1090", "39296"]


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, SLOTS - 1))
@example("{a}", 7)
@example('"]{', 8)
def test_what_is_beside_a_row_is_in_its_slot(table: str, slot: int) -> None:
    assert {slot_of(key) for key in table_keys(names_in(Names("flow", "{x}", table), slot))} == {slot}
    assert slot_of(mark_key(tags()[slot])) == slot


def test_the_targets_own_state_is_in_one_slot() -> None:
    names = ("identity", "checkpoints", "replays", "floors", "tables", "parked", "parked:[1]{x}", "asked")
    assert {slot_of(CLUSTER.key(name)) for name in (*names, "gates", "deleted:{a}")} == {slot_of("state")}
    assert {slot_of(key) for key in STATE_KEYS} == {slot_of("state")}
