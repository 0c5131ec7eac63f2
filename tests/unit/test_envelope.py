"""The envelope byte for byte against Debezium's, and the reader's errors."""

from __future__ import annotations

import orjson
import pytest

from streamer.changes import envelope
from streamer.changes.envelope import MessageContent, RowTemplate, SourceTemplate, decode_value
from streamer.errors import DecodeError

AFTER = b'{"id":1,"first_name":"Anne","last_name":"Kretchmar","email":"annek@noanswer.org"}'

# Observed of Debezium 3.6.3, with our four fields behind origin_lsn; nanoseconds end in our microseconds.
CREATE = (
    rb'{"before":null,"after":{"id":1,"first_name":"Anne","last_name":"Kretchmar","email":"annek@noanswer.org"},'
    rb'"source":{"version":"3.6.3.Final","connector":"postgresql","name":"cdc","ts_ms":1795312202485,'
    rb'"snapshot":"false","db":"postgres","sequence":"[\"25919544\",\"25919648\"]","ts_us":1795312202485585,'
    rb'"ts_ns":1795312202485585000,"schema":"public","table":"customers","txId":787,"lsn":25919648,"xmin":null,'
    rb'"origin":null,"origin_lsn":null,"epoch":1,"commit_lsn":25919700,"ordinal":4,"schema_id":"00ff"},'
    rb'"transaction":null,"op":"c","ts_ms":1795312202495,"ts_us":1795312202495163,"ts_ns":1795312202495163000}'
)


def source(**changed: str) -> SourceTemplate:
    texts = {
        "version": "3.6.3.Final",
        "name": "cdc",
        "db": "postgres",
        "schema": "public",
        "table": "customers",
    }
    texts |= changed
    return SourceTemplate(**texts, schema_id="00ff", epoch=1)


def rows(template: SourceTemplate | None = None, **changed: object) -> RowTemplate:
    values: dict[str, object] = {
        "commit_us": 1795312202485585,
        "xid": 787,
        "commit_lsn": 25919700,
        "previous_commit_lsn": 25919544,
        "now_us": 1795312202495163,
    }
    return (template or source()).transaction(**(values | changed))  # type: ignore[arg-type]


def test_create_is_debeziums_byte_for_byte() -> None:
    assert rows().create(AFTER, 25919648, 4) == CREATE


@pytest.mark.parametrize(
    ("value", "op", "before", "after"),
    [
        (rows().create(b'{"id":1}', 9, 4), "c", None, {"id": 1}),
        (rows().update(b"null", b'{"id":1}', 9, 4), "u", None, {"id": 1}),
        (rows().update(b'{"id":2}', b'{"id":1}', 9, 4), "u", {"id": 2}, {"id": 1}),
        (rows().delete(b'{"id":2}', 9, 4), "d", {"id": 2}, None),
        (rows(snapshot="last").read(b'{"id":1}', 9, 4), "r", None, {"id": 1}),
        (rows().truncate(9, 4), "t", None, None),
    ],
)
def test_every_op_is_written_with_debeziums_fields_and_read_again(
    value: bytes, op: str, before: object, after: object
) -> None:
    raw, example = orjson.loads(value), orjson.loads(CREATE)
    assert list(raw) == list(example)
    assert list(raw["source"]) == list(example["source"])
    change = decode_value(value, where="t[0]@1", offset=0)
    assert (change.op, change.before, change.after) == (op, before, after)
    assert change.version == (1, 25919700, 4)
    assert change.schema_id == "00ff"
    names = [raw["source"][field] for field in ("name", "schema", "table")]
    assert names == ["cdc", "public", "customers"]
    assert (change.commit_us, change.capture_us) == (1795312202485585, 1795312202495163)
    assert (raw["source"]["txId"], raw["source"]["lsn"]) == (787, 9)
    assert raw["source"]["snapshot"] == ("last" if op == "r" else "false")
    assert change.message is None
    assert not change.is_floor


def test_a_processors_row_has_its_records_offset_for_an_lsn() -> None:
    value = rows(commit_lsn=None).create(AFTER, 25919648, 4)
    assert value == CREATE.replace(b'"commit_lsn":25919700', b'"commit_lsn":null') != CREATE
    assert decode_value(value, where="", offset=41).version == (1, 41, 4)
    assert decode_value(CREATE, where="", offset=41).version == (1, 25919700, 4)


def test_names_may_hold_quotes_percent_signs_and_any_script() -> None:
    template = source(name="50%b", db="d%%d", schema='"ü"', table="%s\\t")
    value = rows(template, origin="o%d%").create(b'{"100%":1}', 9, 4)
    change = decode_value(value, where="", offset=0)
    assert change.after == {"100%": 1}
    written = orjson.loads(value)["source"]
    assert (written["name"], written["schema"], written["table"]) == ("50%b", '"ü"', "%s\\t")
    assert orjson.loads(value)["source"]["db"] == "d%%d"
    assert orjson.loads(value)["source"]["origin"] == "o%d%"


def test_what_is_not_known_is_null() -> None:
    value = rows(xid=None, previous_commit_lsn=None).read(b"{}", 123)
    raw = orjson.loads(value)["source"]
    assert raw["txId"] is None
    assert raw["sequence"] == '[null,"123"]'
    assert orjson.loads(rows(origin="peer", origin_lsn=77).truncate(9, 0))["source"]["origin_lsn"] == 77


def test_logical_message_event() -> None:
    value = source().message(
        "foo%b",
        b"\x00\xffx",
        lsn=25919648,
        ordinal=4,
        commit_us=1795312202485585,
        xid=787,
        commit_lsn=25919700,
        previous_commit_lsn=25919544,
        now_us=1795312202495163,
    )
    raw = orjson.loads(value)
    assert list(raw) == ["op", "ts_ms", "source", "transaction", "message"]
    assert raw["source"] == orjson.loads(CREATE)["source"]
    assert (raw["op"], raw["ts_ms"]) == ("m", 1795312202495)
    assert raw["message"] == {"prefix": "foo%b", "content": "AP94"}
    assert decode_value(value, where="", offset=0).message == MessageContent("foo%b", b"\x00\xffx")


def test_floor_is_a_message_of_version_zero_of_its_epoch() -> None:
    change = decode_value(source().floor(lsn=77, commit_us=5, now_us=6000), where="", offset=0)
    assert change.is_floor
    assert (change.version, change.schema_id) == ((1, 0, 0), "00ff")
    assert change.message == MessageContent(envelope.FLOOR_PREFIX, b"")
    assert change.capture_us == 6000


def edited(path: str, value: object) -> bytes:
    raw = orjson.loads(CREATE)
    place = raw
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return orjson.dumps(raw)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"op":"\xff"}', "utf-8"),
        (edited("after", {"a": "?"}).replace(b"?", b"\xff"), "utf-8"),
        (b'{"after":' + b'{"a":' * 100_000, "recursion"),
        (CREATE + b" ,", "trailing characters"),
        (b"null", "got `null`"),
        (b"[]", "got `array`"),
        (b'{"source":[]}', r"got `array` - at `\$.source`"),
        (edited("source.epoch", ...), r"missing required field `epoch` - at `\$.source`"),
        (edited("source.schema_id", ...), r"missing required field `schema_id` - at `\$.source`"),
        (edited("op", ...), "missing required field `op`"),
        (edited("ts_us", ...), "op 'c' with before NoneType, after dict, ts_us NoneType"),
        (edited("op", "x"), "op 'x'"),
        (edited("op", []), r"got `array` - at `\$.op`"),
        (edited("op", "d"), "op 'd' with before NoneType, after dict"),
        (edited("after", [1]), r"got `array` - at `\$.after`"),
        (edited("after", None), "op 'c'"),
        (edited("source.ordinal", True), r"got `bool` - at `\$.source.ordinal`"),
        (edited("source.commit_lsn", "7"), r"got `str` - at `\$.source.commit_lsn`"),
        (edited("source.ts_us", None), r"got `null` - at `\$.source.ts_us`"),
        (edited("source.schema_id", None), r"got `null` - at `\$.source.schema_id`"),
        (edited("op", "m"), "op 'm' without a message"),
    ],
)
def test_what_is_not_an_event_is_an_error_that_names_its_place(value: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as error:
        decode_value(value, where="shop.public.t[2]@17", offset=0)
    assert error.value.where == "shop.public.t[2]@17"


def test_a_message_whose_content_is_not_base64_is_an_error() -> None:
    value = source().floor(lsn=77, commit_us=5, now_us=6).replace(b'"content":""', b'"content":"%"')
    with pytest.raises(DecodeError):
        decode_value(value, where="", offset=0)
