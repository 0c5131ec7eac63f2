"""What `tailrace doctor` prints: eighty columns, no word lost, statements as they must be typed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streamer.commands.doctor import show
from streamer.doctor import Check, Level, Report

WHAT = "a transactional id of the doctor's own, under the prefix that capture's ids have, may be used"
GRANT = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO tailrace_of_the_shop;"
LITERAL = "ALTER ROLE tailrace_of_the_shop PASSWORD 'one two three four five six seven eight nine ten';"
CHANNEL = "__keyspace@0__:" + "a_long_name:" * 8 + "*"
RULE = f"ACL SETUSER app (+get +hgetall +psubscribe %R~user:* &__tailrace__:acme:game &{CHANNEL})"


def lines_of(check: Check, *, terminal: bool) -> list[str]:
    shown = io.StringIO()
    show(Report((check,)), Console(file=shown, width=80, force_terminal=terminal, color_system=None))
    return shown.getvalue().splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_eighty_columns_break_no_word(terminal: bool) -> None:
    check = Check("source shop", "SELECT", Level.FAIL, WHAT, f"{WHAT}, or {WHAT}", (GRANT, LITERAL))
    lines = lines_of(check, terminal=terminal)
    words = {word for line in lines for word in line.split()}
    assert set(f"{WHAT} {GRANT} {LITERAL}".replace("used", "used,").split()) <= words | {"used,"}
    assert any(line.strip() == LITERAL for line in lines), "a copied literal keeps its spaces"
    assert any(line.strip() == GRANT for line in lines) is not terminal
    statements = ("PASSWORD",) if terminal else ("PASSWORD", "GRANT")
    assert all(len(line) <= 80 for line in lines if not any(word in line for word in statements))
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_of_redis_is_one_line_and_its_reason_is_not(terminal: bool) -> None:
    """redis-cli carries out what it has at each end of a line."""
    what = f"the user 'app' may not run GET, HGETALL, PSUBSCRIBE; may not use the channel {CHANNEL}"
    check = Check("source game", "rights", Level.FAIL, what, "as an administrator run", (RULE,))
    lines = lines_of(check, terminal=terminal)
    assert [line.strip() for line in lines].count(RULE) == 1
    others = [line for line in lines if RULE not in line]
    assert max(len(line) for line in others) <= 80
    assert CHANNEL in "".join(line.strip() for line in others), "a word that is too long is broken, not cut"
