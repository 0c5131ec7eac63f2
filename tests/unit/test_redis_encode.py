"""Every cast: what it takes, the JSON it gives, and what it refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.changes.kinds import decoder_for
from streamer.redis import encode
from streamer.redis.encode import BadValue, encoder_for


@pytest.mark.parametrize(
    ("cast", "raw", "made"),
    [
        ("text", b"plain", b'"plain"'),
        ("text", b"", b'""'),
        ("text", b'a"b\n', b'"a\\"b\\n"'),
        ("text", b"\xff\x00", b'"\\\\xff00"'),
        ("text", b"a\x00", b'"\\\\x6100"'),
        ("text", b"\\xff", b'"\\\\x5c786666"'),
        ("bytes", b"\xff\x00", b'"/wA="'),
        ("bytes", b"", b'""'),
        ("int", b"42", b"42"),
        ("int", b"-0", b"0"),
        ("int", b"+7", b"7"),
        ("int", b"007", b"7"),
        ("int", b"9223372036854775807", b"9223372036854775807"),
        ("int", b"-9223372036854775808", b"-9223372036854775808"),
        ("float", b"1", b"1.0"),
        ("float", b"-0", b"-0.0"),
        ("float", b"0.1", b"0.1"),
        ("float", b"1e3", b"1000.0"),
        ("float", b"inf", b'"Infinity"'),
        ("float", b"-Infinity", b'"-Infinity"'),
        ("float", b"nan", b'"NaN"'),
        ("numeric", b"123.4500", b'"123.4500"'),
        ("numeric", b"+1e3", b'"1000"'),
        ("numeric", b"1e-5", b'"0.00001"'),
        ("numeric", b"-0.00", b'"0.00"'),
        ("numeric", b"1" * 100 + b".25", b'"' + b"1" * 100 + b'.25"'),
        ("bool", b"1", b"true"),
        ("bool", b"Off", b"false"),
        ("json", b'{"a": 1.10}', b'"{\\"a\\": 1.10}"'),
        ("json", b"null", b'"null"'),
        ("epoch_ms", b"1795312202485", b'"2026-11-22T01:50:02.485Z"'),
        ("epoch_s", b"0", b'"1970-01-01T00:00:00Z"'),
        ("epoch_s", b"-1.5", b'"1969-12-31T23:59:58.5Z"'),
        ("epoch_s", b"1.0000005", b'"1970-01-01T00:00:01Z"'),
        ("timestamptz", b"2026-11-04T13:51:30.50+01:00", b'"2026-11-04T12:51:30.5Z"'),
        ("timestamptz", b"2026-11-04 13:51:30Z", b'"2026-11-04T13:51:30Z"'),
    ],
)
def test_casts(cast: str, raw: bytes, made: bytes) -> None:
    assert encoder_for(cast)(raw) == made
    decoder_for(encode.TYPES[cast][1])(json.loads(made))  # what a target makes of it


@pytest.mark.parametrize(
    ("cast", "raw", "words"),
    [
        ("int", b"", "is not an integer"),
        ("int", b"1.0", "is not an integer"),
        ("int", b"nan", "is not an integer"),
        ("int", b"1_000", "is not an integer"),
        ("int", b" 1", "is not an integer"),
        ("int", b"9223372036854775808", "cast it to numeric"),
        ("int", b"9" * 100, "is not an integer"),
        ("float", b"", "is not a number"),
        ("float", b"1_0.0", "is not a number"),
        ("float", b"1e999", "cast it to numeric"),
        ("float", b"0x10", "is not a number"),
        ("numeric", b"1e999999", "more than a numeric holds"),
        ("numeric", b"1e-99999", "more than a numeric holds"),
        ("numeric", b"one", "is not a number"),
        ("bool", b"", "neither true nor false"),
        ("bool", b"2", "neither true nor false"),
        ("json", b"", "is not JSON"),
        ("json", b"{a: 1}", "is not JSON"),
        ("json", b"NaN", "is not JSON"),
        ("json", b'"\xff"', "is not JSON"),
        ("json", b"[" * 5000 + b"]" * 5000, "is not JSON"),
        ("epoch_ms", b"nan", "is not a number of time"),
        ("epoch_ms", b"1e300", "outside the years"),
        ("epoch_ms", b"1e999999", "outside the years"),
        ("epoch_s", b"-1e999997", "outside the years"),
        ("epoch_s", b"253402300800", "outside the years"),
        ("epoch_s", b"999999999999999999999999999999", "outside the years"),
        ("timestamptz", b"yesterday", "is not a time in ISO 8601"),
        ("timestamptz", b"\xff", "is not a time in ISO 8601"),
        ("timestamptz", b"2026-11-04 13:51:30", "say which with `naive_is`"),
        ("timestamptz", b"9999-12-31T23:59:59-14:00", "outside the years"),
    ],
)
def test_what_casts_refuse(cast: str, raw: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encoder_for(cast)(raw)


NUMBERS = st.from_regex(rb"[+-]?[0-9]{0,40}\.?[0-9]{0,40}([eE][+-]?[0-9]{1,6})?", fullmatch=True)


@given(cast=st.sampled_from(sorted(encode.TYPES)), raw=st.one_of(st.binary(), NUMBERS))
def test_any_bytes_are_json_or_refused(cast: str, raw: bytes) -> None:
    """Anything else would end the capture of the whole source."""
    with suppress(ValueError):
        json.loads(encoder_for(cast)(raw))


def test_a_nested_document_is_taken() -> None:
    nested = b"[" * 900 + b"]" * 900
    assert encode.document_members(b'{"a": %b}' % nested) == {b"a": nested}


@pytest.mark.parametrize("levels", [1010, 1022, 1100, 100_000])
def test_a_document_nested_too_deeply_is_refused(levels: int) -> None:
    """By the limit of the one parser or of the other."""
    with pytest.raises(ValueError, match=r"nested too deeply|is not JSON"):
        encode.document_members(b'{"a": %b}' % (b"[" * levels + b"]" * levels))


def test_a_time_without_a_zone_is_in_the_one_that_is_named() -> None:
    paris = encoder_for("timestamptz", "Europe/Paris")
    assert paris(b"2026-07-01 12:00:00") == b'"2026-07-01T10:00:00Z"'
    assert paris(b"2026-12-01") == b'"2026-11-30T23:00:00Z"'
    assert paris(b"2026-10-25 02:30:00") == b'"2026-10-25T00:30:00Z"', "the first of two"
    assert paris(b"2026-07-01T12:00:00Z") == b'"2026-07-01T12:00:00Z"', "its own zone counts"


@given(st.floats(allow_nan=False))
def test_a_score_is_exact(score: float) -> None:
    made = encode.encode_score(score)
    assert made == encode.encode_score(b"%.17g" % score), "RESP2 and Lua give 17 digits"
    value = json.loads(made)
    again = float(value)
    assert (again, str(again)) == (score, str(score)), "-0 is kept"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_score_as_text_is_the_same_number(score: float) -> None:
    text = encode.score_text(score)
    assert float(text) == score
    assert score.is_integer() == text.lstrip(b"-").isdigit()


@pytest.mark.parametrize("score", [nan, b"nan", b"x"])
def test_a_score_is_never_nan(score: Any) -> None:
    with pytest.raises(ValueError, match="score"):
        encode.encode_score(score)


def test_infinite_scores() -> None:
    assert encode.encode_score(inf) == b'"Infinity"'
    assert encode.encode_score(b"-inf") == b'"-Infinity"'
    with pytest.raises(ValueError, match="is not an integer"):
        encoder_for("int")(encode.score_text(inf))


def test_a_documents_members_keep_their_digits() -> None:
    document = b'{"n": 1.10, "big": 12345678901234567890123, "s": "a\\u00e9", "no": null, "o": {"x": [1]}, '
    document += b'"b": true}'
    assert encode.document_members(document) == {
        b"n": b"1.10",
        b"big": b"12345678901234567890123",
        b"s": "aé".encode(),
        b"no": None,
        b"o": b'{"x": [1]}',
        b"b": b"true",
    }
    for bad in (b"[1]", b"1", b"{", b'{"a": NaN}', b'{"a": "\xff"}'):
        with pytest.raises(ValueError, match="JSON"):
            encode.document_members(bad)


FLAT = [b"b", b"2", b"\xff", b"1", b"a", b"3"]


@pytest.mark.parametrize(
    "reply",
    [FLAT, dict(zip(FLAT[::2], FLAT[1::2], strict=True)), [[b"a", b"3"], [b"b", b"2"], [b"\xff", b"1"]]],
)
def test_whole_collections_have_one_spelling(reply: Any) -> None:
    assert json.loads(json.loads(encode.whole_hash(reply))) == {"b": "2", "a": "3", "\\xff": "1"}
    assert encode.whole_hash(reply) == encode.whole_hash(FLAT)
    assert json.loads(encode.whole_zset(reply)) == '{"\\\\xff":1.0,"a":3.0,"b":2.0}'


def test_lists_keep_their_order_and_sets_get_one() -> None:
    assert json.loads(json.loads(encode.whole_list([b"b", b"a", b"b"]))) == ["b", "a", "b"]
    assert encode.whole_set({b"b", b"a"}) == encode.whole_set([b"a", b"b"])
    assert encode.whole_hash([]) == encode.whole_zset({}) == b'"{}"'


@given(st.binary(max_size=8), st.sampled_from(["text", "bytes"]))
def test_keys_come_back(raw: bytes, cast: str) -> None:
    assert encode.key_bytes(cast, json.loads(encode.KEY_ENCODERS[cast](raw))) == raw


@given(st.integers())
def test_a_key_that_is_an_integer_has_one_spelling(number: int) -> None:
    raw = str(number).encode()
    if -(2**63) <= number < 2**63:
        assert encode.key_bytes("int", json.loads(encode.encode_key_int(raw))) == raw
    for other in (b"0" + raw, b"+" + raw, b" " + raw, b"-0"):
        with pytest.raises(ValueError, match="shortest form"):
            encode.encode_key_int(other)


def test_the_record_of_a_bad_value() -> None:
    bad = BadValue("is odd", entity="e", db=2, key=b"k\xff", type="hash", payload=b"x" * 70_000)
    assert json.loads(bad.record(5)) == {
        "entity": "e",
        "db": 2,
        "key": "\\x6bff",
        "row": None,
        "reason": "is odd",
        "type": "hash",
        "at_us": 5,
        "payload": encode.encode_bytes(b"x" * 65_536).decode()[1:-1],
        "payload_bytes": 70_000,
    }
    assert "entity 'e', database 2, key '\\\\x6bff': is odd" in str(bad)
