"""Units: sizes in bytes, durations in seconds, shares of 1, rates a second."""

from __future__ import annotations

import pytest
from pydantic_core import PydanticCustomError

from streamer.config.patterns import fits, fits_parts, may_meet
from streamer.config.units import in_the_unit_of, parse_duration, parse_rate, parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "value"), [("5GiB", 5 * 2**30), ("8MiB", 8 * 2**20), ("1.5kB", 1500), (4096, 4096), ("12 B", 12)]
)
def test_sizes(text: object, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 0.005), ("30s", 30), ("60m", 3600), ("1h", 3600), ("7d", 604800), (2, 2.0)]
)
def test_durations(text: object, value: float) -> None:
    assert parse_duration(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0%", 0), (0.25, 0.25), ("100%", 1)])
def test_shares(text: object, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("5/s", 5), (0, 0), ("60/m", 1)])
def test_rates(text: object, value: float) -> None:
    assert parse_rate(text) == pytest.approx(value)


@pytest.mark.parametrize("parse", [parse_size, parse_duration, parse_share, parse_rate])
@pytest.mark.parametrize("value", ["", "x", "-1", "1 parsec", True, None, [], "1e3"])
def test_what_is_no_number_with_a_unit_is_refused(parse: object, value: object) -> None:
    assert callable(parse)
    with pytest.raises(PydanticCustomError, match="write it as"):
        parse(value)


@pytest.mark.parametrize(
    ("value", "number", "text"),
    [
        ("1KiB", 65536, "64KiB"),
        ("9 gb", 8 * 2**20, "8MiB"),
        ("1B", 1000, "1KB"),
        ("3661d", 3660 * 86400.0, "3660d"),
        ("90m", 3600.0, "1h"),
        ("1ms", 0.0, "0"),
        ("5s", 1.5, "1500ms"),
        ("5", 65536, "65,536"),
        (5, 0.0, "0"),
        (None, 0.5, "0.5"),
    ],
)
def test_a_limit_is_written_as_the_value_beside_it(value: object, number: float, text: str) -> None:
    assert in_the_unit_of(value, number) == text


def test_patterns() -> None:
    assert fits("a*c?", "abbbcd")
    assert not fits("a.c", "abc")
    assert fits_parts("public.*", ("public", "x.y"))
    assert not fits_parts("pub*.x", ("public.a", "y"))


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [("a*", "*b", True), ("a*", "b*", False), ("*", "", True), ("a?c", "abc", True), ("ab", "a", False)],
)
def test_whether_two_patterns_can_meet(one: str, other: str, meet: bool) -> None:
    assert may_meet(one, other) is meet
    assert may_meet(other, one) is meet
