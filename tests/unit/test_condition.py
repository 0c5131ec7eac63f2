"""A condition stays between the brackets that are put around it."""

from __future__ import annotations

import pytest

from streamer.errors import ConfigError
from streamer.postgres.condition import check_condition


@pytest.mark.parametrize(
    "condition",
    [
        "id = 5",
        "name = ')' OR name = 'it''s )'",
        "name = E'it\\'s )' AND (a OR b)",
        "\"a)b\" = 1 AND e = ''",
        "name = $$ ) $$ OR name = $x$ ) $y$ $x$",
        "price$ > 1 AND a$b$c > 2",
        "id = 5 -- one )",
        "id /* ) /* ( */ ) */ = 5",
        "id = ANY (ARRAY[1, 2])",
    ],
)
def test_one_expression_is_taken(condition: str) -> None:
    check_condition(condition, "--where")


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("id = 5) or (1=1", r"its '\)' at character 7 closes nothing in it"),
        ("id = 5 -- (\n) or (1=1", r"its '\)' at character 13 closes nothing"),
        ("a[1)", r"its '\)' at character 4 closes nothing"),
        ("name = 'a\\') or (1=1 -- '", r"its '\)' at character 12 closes nothing"),
        ("(id = 5", r"its '\(' is never closed"),
        ("id = 5; SELECT 1", "a `;` at character 7 ends it"),
        ("name = 'a", "the ' at character 8 is never closed"),
        ("name = E'\\'", "the ' at character 9 is never closed"),
        ("id = 5 /* /* */", "a comment in it is never closed"),
    ],
)
def test_what_would_end_it_is_refused_with_its_place(condition: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"no expression: {why}") as refused:
        check_condition(condition, "--where")
    assert refused.value.fix == "write one expression, as behind WHERE: a AND (b OR c)"
