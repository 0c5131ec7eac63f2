"""The record of a dead letter, which other programs read."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import orjson

from consumers.apply.checkpoint import Place
from consumers.apply.dead_letters import MESSAGE_LIMIT, PARKED, DeadLetter
from consumers.apply.fold import BOTTOM

LETTER = DeadLetter(
    Place("mirror", "shop.public.orders", 3),
    17,
    b'{"id":7}',
    "public.orders",
    "23514",
    "violates check constraint",
    (1, 200, 4),
    b'{"op":"c","after":{"n":123456789012345678901234567890}}',
    PARKED,
)
AT_US = 1_700_000_000_000_000


def test_a_letter_has_place_reason_and_payload() -> None:
    text = LETTER.dump("warehouse", AT_US, 1000)
    assert b"123456789012345678901234567890" in text  # digits as they came
    letter = orjson.loads(text)
    del letter["payload"]
    assert letter == {
        "format": 1,
        "target": "warehouse",
        "flow": "mirror",
        "topic": "shop.public.orders",
        "partition": 3,
        "offset": 17,
        "key": '{"id":7}',
        "table": "public.orders",
        "reason": {"code": "23514", "message": "violates check constraint"},
        "version": [1, 200, 4],
        "at_us": AT_US,
        "action": "parked",
    }


def test_bytes_that_are_no_text_travel_as_base64() -> None:
    raw = replace(LETTER, key=b"\xff\x00", payload=b"\xfe{", decodes=False, version=BOTTOM)
    letter = orjson.loads(raw.dump("warehouse", AT_US, 1000))
    assert (letter["key"], letter["key_encoding"]) == (b64encode(b"\xff\x00").decode(), "base64")
    assert (letter["payload"], letter["payload_encoding"]) == (b64encode(b"\xfe{").decode(), "base64")
    assert orjson.loads(replace(raw, key=None).dump("warehouse", AT_US, 1000))["key"] is None


def test_what_is_too_large_is_left_out_and_its_size_told() -> None:
    large = replace(LETTER, payload=b'"' + b"x" * 998 + b'"', message="m" * 10_000)
    assert orjson.loads(large.dump("warehouse", AT_US, 1000))["payload"] == "x" * 998
    letter = orjson.loads(large.dump("warehouse", AT_US, 999))
    assert (letter["payload"], letter["payload_bytes"]) == (None, 1000)
    assert len(letter["reason"]["message"]) == MESSAGE_LIMIT
