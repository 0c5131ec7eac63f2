"""Sizes, durations, shares and rates as people write them, and the pydantic types made of them.

size      = number [KB MB GB KiB MiB GiB TiB B]      bytes; a bare number is bytes
duration  = number (ms | s | m | h | d | w)          seconds; a bare number is seconds
share     = number "%" | number from 0 to 1          a fraction of 1
rate      = number ["/s" | "/m" | "/h"]              a second; 0 is "no limit"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from streamer.errors import ConfigError

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%/]*)\s*")

_SIZES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RATES = {"": 1.0, "/s": 1.0, "/m": 1 / 60, "/h": 1 / 3600}


def _split(value: object, what: str, example: str) -> tuple[float, str]:
    match = None
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        match = _NUMBER.fullmatch(str(value))
    if match is None:
        raise PydanticCustomError("unit", "is not a {what}: write it as {example}", _words(what, example))
    return float(match[1]), match[2]


def _words(what: str, example: str) -> dict[str, str]:
    return {"what": what, "example": example}


def parse_size(value: object) -> int:
    """'5GiB' -> bytes. Raises PydanticCustomError for anything else."""
    number, unit = _split(value, "size", "512KiB, 8MiB or 5GiB")
    factor = _SIZES.get(unit.upper())
    if factor is None:
        raise PydanticCustomError("unit", "is not a size: write it as {example}", {"example": "8MiB or 5GiB"})
    return round(number * factor)


def parse_duration(value: object) -> float:
    """'30s' -> seconds. Raises PydanticCustomError for anything else."""
    number, unit = _split(value, "duration", "500ms, 30s, 60m, 1h or 7d")
    factor = _DURATIONS.get(unit)
    if factor is None:
        example = {"example": "500ms, 30s, 60m, 1h or 7d"}
        raise PydanticCustomError("unit", "is not a duration: write it as {example}", example)
    return number * factor


def parse_share(value: object) -> float:
    """'10%' -> 0.1. Raises PydanticCustomError for anything else, and for what is above 100%."""
    number, unit = _split(value, "share", "10%")
    share = number / 100 if unit == "%" else number
    if unit not in ("", "%") or share > 1:
        raise PydanticCustomError(
            "unit", "is not a share: write it as {example}", {"example": "10% (0% to 100%)"}
        )
    return share


def parse_rate(value: object) -> float:
    """'5/s' -> 5.0 a second; 0 is no limit. Raises PydanticCustomError for anything else."""
    number, unit = _split(value, "rate", "500/s (0: no limit)")
    factor = _RATES.get(unit)
    if factor is None:
        raise PydanticCustomError("unit", "is not a rate: write it as {example}", {"example": "500/s"})
    return number * factor


def in_the_unit_of(value: object, number: float) -> str:
    """The number as people would write it beside the value: 65536 beside '1KiB' is 64KiB."""
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    unit = match[2] if match else ""
    factors: dict[str, float] = {}
    if unit in _DURATIONS:
        factors = {name: factor for name, factor in _DURATIONS.items() if name not in ("", "w")}
    elif unit.upper() in _SIZES:
        factors = {name.replace("IB", "iB"): factor for name, factor in _SIZES.items() if name}
    for name, factor in sorted(factors.items(), key=lambda item: -item[1]):
        if unit and number >= factor and (number / factor).is_integer():
            return f"{number / factor:.0f}{name}"
    return f"{number:,.12g}"


def option_value(parse: Callable[[object], float], text: str, name: str, command: str) -> float:
    """An option's value on the command line. Raises ConfigError."""
    try:
        return parse(text)
    except ValueError as error:  # pydantic's own error is one
        raise ConfigError(f"{name} {text!r} {error}", where=command, fix=f"see `{command} --help`") from None


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _given(parse: Callable[[object], float]) -> Callable[[object], object]:
    return lambda value: None if value is None or value == "" else parse(value)


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, BeforeValidator(parse_share)]
Rate = Annotated[float, BeforeValidator(parse_rate)]
OptionalSize = Annotated[int | None, BeforeValidator(_given(parse_size))]
OptionalDuration = Annotated[float | None, BeforeValidator(_given(parse_duration))]
OptionalShare = Annotated[float | None, BeforeValidator(_given(parse_share))]
EmptyIsNone = BeforeValidator(_empty_is_none)
