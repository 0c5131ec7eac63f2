"""Redis's bytes -> the JSON of a column, by cast. Pure, no I/O.

    cast         Postgres's type            takes
    text         text                       any bytes; see patterns.text_of
    int          bigint                     42
    float        double precision           1.5  1e3  inf  nan
    numeric      numeric                    123.4500  1e3  nan
    bool         boolean                    1 0 true false t f yes no y n on off, in any case
    json         jsonb                      a JSON document, kept as it is spelt
    epoch_ms     timestamp with time zone   1795312202485
    epoch_s      timestamp with time zone   1795312202.485
    timestamptz  timestamp with time zone   2026-11-04T13:51:30.5+01:00; without a zone: in `naive_is`
    bytes        bytea                      any bytes

The JSON is that of streamer.changes.kinds. What a cast does not take is a ValueError that says why;
the caller makes a BadValue of it, which names the entity and the key. An empty value is no number and
no time: nothing here guesses that it means null. A score is never NaN: Redis refuses it.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite, isnan
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import DecodeError as MalformedJson
from msgspec import Raw
from msgspec import json as exact_json
from orjson import JSONDecodeError, dumps, loads

from streamer.errors import BadRecordError
from streamer.redis.patterns import bytes_of, text_of

Encode = Callable[[bytes], bytes]  # Redis's bytes -> JSON; ValueError says why not

NULL = b"null"
PAYLOAD_LIMIT_BYTES = 65_536  # of a bad value, as far as its record keeps it
SHOWN_LIMIT = 60  # characters of a value in a message

# cast -> (Postgres's type, kind of streamer.changes.kinds)
TYPES = {
    "text": ("text", "text"),
    "int": ("bigint", "number"),
    "float": ("double precision", "float"),
    "numeric": ("numeric", "numeric"),
    "bool": ("boolean", "bool"),
    "json": ("jsonb", "json"),
    "epoch_ms": ("timestamp with time zone", "timestamptz"),
    "epoch_s": ("timestamp with time zone", "timestamptz"),
    "timestamptz": ("timestamp with time zone", "timestamptz"),
    "bytes": ("bytea", "bytea"),
}

_BIGINT = range(-(2**63), 2**63)
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)").fullmatch
_LOOSE_INTEGER = re.compile(rb"[+-]?[0-9]{1,40}").fullmatch
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?").fullmatch
_DIGITS_LIMIT = 131_072  # before the point, as Postgres's numeric has them; 16,383 behind it
_FRACTION_LIMIT = 16_383
_NOT_FINITE = {
    b"inf": b'"Infinity"',
    b"+inf": b'"Infinity"',
    b"infinity": b'"Infinity"',
    b"+infinity": b'"Infinity"',
    b"-inf": b'"-Infinity"',
    b"-infinity": b'"-Infinity"',
    b"nan": b'"NaN"',
    b"-nan": b'"NaN"',
}
_BOOLS = {
    word.encode(): b"true" if word in ("1", "true", "t", "yes", "y", "on") else b"false"
    for word in ("1", "true", "t", "yes", "y", "on", "0", "false", "f", "no", "n", "off")
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_US = range(-62_135_596_800_000_000, 253_402_300_800_000_000)  # the years 1 to 9999


class BadValue(BadRecordError):
    """One value that its entity cannot use. `row_key`: of the one row that it is, None: of a whole key."""

    def __init__(
        self,
        reason: str,
        *,
        entity: str,
        db: int,
        key: bytes,
        type: str = "",
        payload: bytes = b"",
        row_key: bytes | None = None,
    ) -> None:
        super().__init__(
            reason,
            where=f"entity {entity!r}, database {db}, key {text_of(key)!r}",
            fix="mend the value, or the entity's type, columns or casts in the config",
        )
        self.reason = reason
        self.entity = entity
        self.db = db
        self.key = key
        self.type = type
        self.payload = payload
        self.row_key = row_key

    def record(self, at_us: int) -> bytes:
        """The JSON for the topic `<name>.__bad.<source>`."""
        return dumps(
            {
                "entity": self.entity,
                "db": self.db,
                "key": text_of(self.key),
                "row": None if self.row_key is None else self.row_key.decode(),
                "reason": self.reason,
                "type": self.type,
                "at_us": at_us,
                "payload": b2a_base64(self.payload[:PAYLOAD_LIMIT_BYTES], newline=False).decode(),
                "payload_bytes": len(self.payload),
            }
        )


def encoder_for(cast: str, naive_is: str | None = None) -> Encode:
    if cast == "timestamptz":
        return timestamptz_encoder(naive_is)
    return _ENCODERS[cast]


def _shown(raw: bytes) -> str:
    text = text_of(raw[: SHOWN_LIMIT * 4])
    return repr(text if len(text) <= SHOWN_LIMIT else text[:SHOWN_LIMIT] + "...")


def encode_text(raw: bytes) -> bytes:
    return dumps(text_of(raw))


def encode_bytes(raw: bytes) -> bytes:
    return b'"%b"' % b2a_base64(raw, newline=False)


def encode_int(raw: bytes) -> bytes:
    if _INTEGER(raw) and len(raw) < 19 and raw != b"-0":
        return raw
    if not _LOOSE_INTEGER(raw):
        raise ValueError(f"{_shown(raw)} is not an integer")
    number = int(raw)
    if number not in _BIGINT:
        raise ValueError(f"{_shown(raw)} is more than a bigint holds; cast it to numeric")
    return b"%d" % number


def encode_key_int(raw: bytes) -> bytes:
    """The one spelling only: two keys are never one row."""
    if not _INTEGER(raw) or raw == b"-0" or len(raw) > 20 or int(raw) not in _BIGINT:
        raise ValueError(f"{_shown(raw)} is not a bigint in its shortest form, which a key must be")
    return raw


def encode_float(raw: bytes) -> bytes:
    if _DECIMAL(raw):
        number = float(raw)
        if isfinite(number):
            return dumps(number)
        raise ValueError(f"{_shown(raw)} is more than a double precision holds; cast it to numeric")
    special = _NOT_FINITE.get(raw.lower())
    if special is None:
        raise ValueError(f"{_shown(raw)} is not a number")
    return special


def encode_numeric(raw: bytes) -> bytes:
    """As Postgres prints it: every digit, no exponent."""
    if _DECIMAL(raw):
        number = Decimal(raw.decode())
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        if len(digits) + exponent > _DIGITS_LIMIT or -exponent > _FRACTION_LIMIT:
            raise ValueError(f"{_shown(raw)} is more than a numeric holds")
        text = format(number if number else abs(number), "f")
        return b'"%b"' % text.encode()
    special = _NOT_FINITE.get(raw.lower())
    if special is None:
        raise ValueError(f"{_shown(raw)} is not a number")
    return special


def encode_bool(raw: bytes) -> bytes:
    value = _BOOLS.get(raw.lower())
    if value is None:
        raise ValueError(f"{_shown(raw)} is neither true nor false")
    return value


def encode_json(raw: bytes) -> bytes:
    try:
        loads(raw)
    except JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return dumps(raw.decode())


def encode_us(us: int) -> bytes:
    """Microseconds since 1970 -> a timestamptz, as Postgres prints it: a fraction without its zeros."""
    if us not in _EPOCH_US:
        raise ValueError(f"{us} us is outside the years 1 to 9999")
    return _timestamp(_EPOCH + timedelta(microseconds=us))


def encode_expiry(us: int) -> bytes:
    """Redis takes expiries that no date can name: those never come."""
    return encode_us(us) if us < _EPOCH_US.stop else b'"infinity"'


def _timestamp(moment: datetime) -> bytes:
    text = moment.replace(tzinfo=None).isoformat()
    if moment.microsecond:
        text = text.rstrip("0")
    return b'"%bZ"' % text.encode()


def encode_epoch_ms(raw: bytes) -> bytes:
    return _epoch(raw, 1_000)


def encode_epoch_s(raw: bytes) -> bytes:
    return _epoch(raw, 1_000_000)


def _epoch(raw: bytes, factor: int) -> bytes:
    """Past the microsecond it is rounded, half to even."""
    if not _DECIMAL(raw):
        raise ValueError(f"{_shown(raw)} is not a number of time since 1970")
    number = Decimal(raw.decode())
    if number.adjusted() > len(str(_EPOCH_US.stop)):  # an exponent that no arithmetic takes is one of them
        raise ValueError(f"{_shown(raw)} is outside the years 1 to 9999")
    return encode_us(int((number * factor).to_integral_value()))


def timestamptz_encoder(naive_is: str | None) -> Encode:
    """Of ISO 8601 texts. A time that a zone has twice is the first of the two."""
    zone = ZoneInfo(naive_is) if naive_is is not None else None

    def encode(raw: bytes) -> bytes:
        try:
            moment = datetime.fromisoformat(raw.decode())
        except ValueError:  # UnicodeDecodeError is one
            raise ValueError(f"{_shown(raw)} is not a time in ISO 8601") from None
        if moment.tzinfo is None:
            if zone is None:
                raise ValueError(f"{_shown(raw)} has no time zone; say which with `naive_is`")
            moment = moment.replace(tzinfo=zone)
        try:
            return _timestamp(moment.astimezone(UTC))
        except OverflowError:
            raise ValueError(f"{_shown(raw)} is outside the years 1 to 9999") from None

    return encode


_ENCODERS: dict[str, Encode] = {
    "text": encode_text,
    "int": encode_int,
    "float": encode_float,
    "numeric": encode_numeric,
    "bool": encode_bool,
    "json": encode_json,
    "epoch_ms": encode_epoch_ms,
    "epoch_s": encode_epoch_s,
    "bytes": encode_bytes,
}
KEY_ENCODERS: dict[str, Encode] = {"text": encode_text, "int": encode_key_int, "bytes": encode_bytes}


def key_bytes(cast: str, value: Any) -> bytes:
    """The bytes that KEY_ENCODERS[cast] made this JSON value of."""
    if cast == "int":
        return b"%d" % value
    return a2b_base64(value) if cast == "bytes" else bytes_of(value)


# Scores: a double, as RESP3 gives it or as the 17 digits of RESP2 and Lua

Score = bytes | float | int


def encode_score(score: Score) -> bytes:
    """The shortest digits that give the same double again; -0 is kept, infinity is a string."""
    number = _double(score)
    if isfinite(number):
        return dumps(number)
    return b'"Infinity"' if number > 0 else b'"-Infinity"'


def score_text(score: Score) -> bytes:
    """For a cast: an integral score is an integer's text, whatever its exponent."""
    number = _double(score)
    if number.is_integer():
        return b"%d" % int(number)
    return repr(number).encode()


def _double(score: Score) -> float:
    try:
        number = float(score)
    except ValueError:
        raise ValueError(f"{score!r} is not a score") from None
    if isnan(number):
        raise ValueError("a score is never NaN")
    return number


# JSON documents taken apart: each member keeps the digits it is spelt with

_members = exact_json.Decoder(dict[str, Raw]).decode


def document_members(raw: bytes) -> dict[bytes, bytes | None]:
    """A JSON object -> {name: what a cast takes}: a string's text, any other value's JSON; null is None.

    Raises ValueError: not JSON, or no object.
    """
    try:
        loads(raw)  # whole and strict: what is inside of a member is not looked at below
        found = _members(raw)
    except JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:  # it depends on the caller's stack, too
        raise ValueError("is JSON that is nested too deeply") from None
    except MalformedJson:
        raise ValueError("is JSON, but no object") from None
    return {name.encode(): _member(bytes(value).strip()) for name, value in found.items()}


def _member(value: bytes) -> bytes | None:
    if value == NULL:
        return None
    if value[:1] == b'"':
        text: str = loads(value)
        return text.encode()
    return value


# Whole collections as one JSON value; what Redis keeps in no order is sorted


def pairs(value: Any) -> Iterable[tuple[bytes, Any]]:
    """A hash's or zset's reply: a map, a list of pairs, or a flat list -> pairs."""
    if isinstance(value, Mapping):
        return list(value.items())
    if value and isinstance(value[0], list | tuple):
        return [(name, item) for name, item in value]
    return list(zip(value[::2], value[1::2], strict=True))


def fields(value: Any) -> dict[bytes, bytes | None]:
    """A hash, or a stream's entry, where the last of two equal fields counts."""
    return dict(pairs(value))


def whole_hash(value: Any) -> bytes:
    return _as_json_column(
        {text_of(name): text_of(item) for name, item in sorted(dict(pairs(value)).items())}
    )


def whole_zset(value: Any) -> bytes:
    """{member: score}, in the members' order; infinity is a string."""
    scores = {text_of(member): loads(encode_score(score)) for member, score in pairs(value)}
    return _as_json_column(dict(sorted(scores.items())))


def whole_list(value: Iterable[bytes]) -> bytes:
    return _as_json_column([text_of(item) for item in value])


def whole_set(value: Iterable[bytes]) -> bytes:
    return _as_json_column([text_of(item) for item in sorted(value)])


def _as_json_column(value: object) -> bytes:
    """A jsonb column's value: a JSON string of the text."""
    return dumps(dumps(value).decode())
