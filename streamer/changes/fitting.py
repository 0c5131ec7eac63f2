"""Which values of a source column fit a target column, judged by the types as format_type prints them. Pure.

A value travels as Postgres's text. It fits when every value of the source's type is a value of the
target's type, exact: widening is allowed, and any type fits text. `json` to `jsonb` is allowed; it
keeps the value, not its spelling.
"""

from __future__ import annotations

import re
from typing import Final

_TYPE = re.compile(r"(?P<base>[^(\[]+?)\s*(?:\((?P<args>[0-9, -]+)\))?(?P<rest>[^(\[]*)(?P<array>(?:\[\])*)")

# Names as people write them, in the words of format_type.
ALIASES: Final = {
    "int": "integer",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float": "double precision",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "decimal": "numeric",
    "varchar": "character varying",
    "char": "character",
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
    "timetz": "time with time zone",
    "time": "time without time zone",
}

_SAME = {"character varying": "varchar", "character": "char", "bit varying": "varbit"}

# Target types that hold every value of the source type, whatever the typmods.
_WIDER: dict[str, frozenset[str]] = {
    "smallint": frozenset({"integer", "bigint", "real", "double precision"}),
    "integer": frozenset({"bigint", "double precision"}),
    "oid": frozenset({"bigint", "numeric"}),
    "date": frozenset({"timestamp without time zone"}),
    "real": frozenset({"double precision"}),
    "json": frozenset({"jsonb"}),
    "name": frozenset({"varchar"}),
    "cidr": frozenset({"inet"}),
    "macaddr": frozenset({"macaddr8"}),
}
_ANY_TEXT = ("text", "citext", "character varying")
_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19}
_FRACTIONAL = ("time without time zone", "time with time zone", "timestamp without time zone")
_MICROSECONDS = 6


def fits_type(source: str, target: str) -> bool:
    """Whether every value of `source` is a value of `target`: 'integer', 'numeric(10,2)', 'text[]', ..."""
    if target in (source, *_ANY_TEXT):
        return True
    one, other = _parse(source), _parse(target)
    if one is None or other is None or one[2] != other[2]:
        return False
    (base, args, _), (wanted, limits, _) = one, other
    if base == wanted:
        return _narrower_or_equal(base, args, limits)
    if wanted == "varchar" and base == "char":
        return not limits or (args or (1,)) <= limits
    if wanted == "varchar" and not limits:  # of arrays
        return True
    if wanted == "numeric" and base in _DIGITS:
        return not limits or limits[0] - (limits[1] if len(limits) > 1 else 0) >= _DIGITS[base]
    if wanted == "varbit" and base == "bit":
        return not limits or (args or (1,)) <= limits
    return wanted in _WIDER.get(base, frozenset())


def _parse(text: str) -> tuple[str, tuple[int, ...], bool] | None:
    match = _TYPE.fullmatch(text)
    if match is None:
        return None
    base = (match["base"] + match["rest"]).strip()
    args = tuple(int(a) for a in match["args"].split(",")) if match["args"] else ()
    return _SAME.get(base, base), args, bool(match["array"])


def _narrower_or_equal(base: str, args: tuple[int, ...], limits: tuple[int, ...]) -> bool:
    if not limits or args == limits:
        return True
    if base in ("varchar", "varbit"):
        return bool(args) and args <= limits
    if base == "char":
        return (args or (1,)) <= limits
    if base == "numeric":
        if not args:
            return False
        scale, wanted_scale = (a[1] if len(a) > 1 else 0 for a in (args, limits))
        return scale <= wanted_scale and args[0] - scale <= limits[0] - wanted_scale
    if base in _FRACTIONAL or base.startswith(("timestamp", "time", "interval")):
        return (args[0] if args else _MICROSECONDS) <= limits[0]
    return False
