"""Keys as people write them for `tailrace why`."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.why import key_values
from streamer.errors import ConfigError

KINDS = {"id": "number", "a": "number", "b": "text"}


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("7", ["id"], {"id": 7}),
        ('{"id": 7}', ["id"], {"id": 7}),
        ("[7]", ["id"], {"id": 7}),
        ('[1, "x"]', ["a", "b"], {"a": 1, "b": "x"}),
        ('{"b": "x", "a": 1}', ["a", "b"], {"a": 1, "b": "x"}),
        ("a word", ["b"], {"b": "a word"}),
    ],
)
def test_a_key_in_each_form(text: str, names: list[str], values: dict[str, Any]) -> None:
    assert key_values(text, names, KINDS) == values


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ("x", ["id"], "no value of the key's column id"),
        ("1", ["a", "b"], "the key has 2 columns: a, b"),
        ("[1]", ["a", "b"], "the key has 2 columns: a, b"),
        ('{"nr": 1}', ["id"], "the key has the columns id, not nr"),
        ("{", ["id"], "is no JSON"),
    ],
)
def test_a_key_that_is_none_is_told_with_its_columns(text: str, names: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        key_values(text, names, KINDS)
    assert words in str(caught.value)
    assert f'"{names[0]}":"..."' in str(caught.value)
