"""What is said of an error that nobody has expected."""

from __future__ import annotations

from streamer.errors import bug


def test_a_bug_is_named_where_it_was_raised() -> None:
    def overflow() -> float:
        return 10.0**400

    try:
        try:
            overflow()
        except OverflowError as error:
            raise ExceptionGroup("tasks", [ExceptionGroup("inner", [error])]) from None
    except ExceptionGroup as group:
        group.exceptions[0].exceptions[0].add_note("key 'a' of database 0")
        text = bug(group)
    assert text.startswith("a bug of Tailrace: OverflowError(")
    assert "test_errors.py:" in text
    assert "in overflow)" in text
    assert text.endswith("; key 'a' of database 0")
