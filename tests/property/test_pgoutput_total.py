"""Any bytes give a message or a DecodeError with an offset inside them, never anything else."""

from __future__ import annotations

from struct import pack

import orjson
from hypothesis import given
from hypothesis import strategies as st

from streamer.changes.envelope import Change, decode_value
from streamer.changes.kinds import ENCODERS
from streamer.errors import DecodeError
from streamer.postgres import replication_messages
from streamer.postgres.pgoutput import AnyMessage, Delete, Insert, Relation, RelationColumn, Update, decode
from streamer.postgres.rows import RowEncoder

OID = 16385
KINDS = [*ENCODERS, "array:number", "array:text", "array:timestamptz"]
COLUMNS = tuple(RelationColumn(kind, 25, -1, kind in ("number", "text")) for kind in KINDS)
RELATION = Relation(OID, "public", "t", "d", COLUMNS)
FULL = RELATION._replace(identity="f", columns=tuple(c._replace(key=True) for c in COLUMNS))
ROWS = [RowEncoder(RELATION, KINDS, ["number", "text"]), RowEncoder(FULL, KINDS, [])]

VALUES = {
    "number": b"42",
    "float": b"1.5",
    "bool": b"t",
    "bytea": b"\\x0102",
    "hstore": b'"a"=>"1", "b"=>NULL',
    "timestamptz": b"2016-11-04 11:51:30.5+00",
    "bit1": b"1",
    "vector": b"[1,2.5]",
    "array:number": b"{{1,NULL},{3,4}}",
    "array:text": b'{a,"b,c",NULL}',
    "array:timestamptz": b'{"2016-11-04 11:51:30+00"}',
}


def text(value: bytes) -> bytes:
    return b"t" + pack(">i", len(value)) + value


def tuples(kinds: list[str] = KINDS) -> st.SearchStrategy[bytes]:
    one = st.sampled_from([b"n", b"u"])
    cells = [
        one | st.just(text(VALUES.get(kind, b"text"))) | st.binary(max_size=6).map(text) for kind in kinds
    ]
    return st.tuples(*cells).map(lambda parts: pack(">h", len(parts)) + b"".join(parts))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8).map(
    lambda n: n.encode() + b"\0"
)
HEAD = pack(">I", OID)
ROW_MESSAGES = st.one_of(
    st.tuples(st.just(b"I" + HEAD + b"N"), tuples()),
    st.tuples(st.just(b"U" + HEAD + b"N"), tuples()),
    st.tuples(st.just(b"U" + HEAD), st.sampled_from([b"K", b"O"]), tuples(), st.just(b"N"), tuples()),
    st.tuples(st.just(b"D" + HEAD), st.sampled_from([b"K", b"O"]), tuples()),
).map(b"".join)
OTHER_MESSAGES = st.one_of(
    st.binary(min_size=20, max_size=20).map(lambda b: b"B" + b),
    st.binary(min_size=24, max_size=24).map(lambda b: b"C\0" + b),
    st.tuples(st.binary(min_size=8, max_size=8), NAMES).map(lambda p: b"O" + b"".join(p)),
    st.tuples(st.just(b"Y" + HEAD), NAMES, NAMES).map(b"".join),
    st.tuples(st.binary(min_size=8, max_size=8), NAMES, st.binary(max_size=9)).map(
        lambda p: b"M\1" + p[0] + p[1] + pack(">i", len(p[2])) + p[2]
    ),
    st.lists(st.just(HEAD), max_size=3).map(lambda o: b"T" + pack(">IB", len(o), 1) + b"".join(o)),
    st.tuples(NAMES, NAMES, st.lists(NAMES.map(lambda n: b"\1" + n + pack(">Ii", 25, -1)), max_size=3)).map(
        lambda p: b"R" + HEAD + p[0] + p[1] + b"f" + pack(">h", len(p[2])) + b"".join(p[2])
    ),
)


@st.composite
def mutated(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """A valid message with some bytes changed, taken out or put in."""
    payload = draw(messages)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(payload)))
        until = draw(st.integers(at, min(len(payload), at + 4)))
        payload = payload[:at] + draw(st.binary(max_size=4)) + payload[until:]
    return payload


def inside(error: DecodeError, content: bytes) -> None:
    """The error says where."""
    assert 0 <= error.offset <= len(content)


def read(payload: bytes) -> AnyMessage | None:
    try:
        return decode(payload)
    except DecodeError as error:
        inside(error, payload)
        return None


@given(
    st.binary(max_size=64)
    | st.tuples(st.sampled_from(b"BMCORYIUDT"), st.binary(max_size=64)).map(lambda p: bytes((p[0],)) + p[1])
)
def test_any_bytes_give_a_message_or_a_decode_error(payload: bytes) -> None:
    read(payload)


@given(ROW_MESSAGES | OTHER_MESSAGES)
def test_what_follows_the_grammar_is_read(payload: bytes) -> None:
    assert read(payload) is not None


@given(mutated(ROW_MESSAGES | OTHER_MESSAGES))
def test_mutated_messages_give_a_message_or_a_decode_error(payload: bytes) -> None:
    read(payload)


@given(ROW_MESSAGES | mutated(ROW_MESSAGES))
def test_rows_give_valid_json_or_a_decode_error_and_accept_only_what_the_decoder_accepts(
    payload: bytes,
) -> None:
    message = read(payload)
    for rows in ROWS:
        for method, kind in ((rows.insert, Insert), (rows.update, Update), (rows.delete, Delete)):
            try:
                results = method(payload)
            except DecodeError as error:
                inside(error, payload)
                continue
            assert type(message) is kind
            for json in results:
                assert json is None or type(orjson.loads(json)) in (dict, type(None))


@given(
    st.binary(max_size=80)
    | st.lists(st.binary(max_size=6), min_size=len(KINDS), max_size=len(KINDS)).map(b"\t".join)
)
def test_copy_lines_give_valid_json_or_a_decode_error(line: bytes) -> None:
    try:
        _, after = ROWS[0].copy_row(line)
    except DecodeError as error:
        inside(error, line)
    else:
        assert type(orjson.loads(after)) is dict


@given(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda b: b"w" + b)
    | st.binary(max_size=18).map(lambda b: b"k" + b)
)
def test_any_copy_data_gives_a_replication_message_or_a_decode_error(data: bytes) -> None:
    try:
        replication_messages.parse(data)
    except DecodeError as error:
        inside(error, data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "name",
    "snapshot",
    "ts_us",
    "schema",
    "table",
    "txId",
    "lsn",
    "epoch",
    "commit_lsn",
    "ordinal",
    "schema_id",
)
TEXTS = ("name", "snapshot", "schema", "table", "schema_id")
EVENTS = st.fixed_dictionaries(
    {
        "before": st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=2) | JSON,
        "after": st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=2) | JSON,
        "source": st.fixed_dictionaries(
            {name: st.just(1) for name in FIELDS} | {n: st.just("x") for n in TEXTS}
        )
        | st.fixed_dictionaries({name: st.integers(0, 9) | st.just("x") for name in FIELDS})
        | JSON,
        "op": st.sampled_from("cudrtm") | JSON,
        "ts_ms": st.integers().map(lambda n: n % 2**60) | JSON,
        "ts_us": st.integers(0, 9) | JSON,
        "message": st.fixed_dictionaries({"prefix": st.text(max_size=3), "content": st.text(max_size=3)})
        | JSON,
    }
)


@given(st.binary(max_size=64) | EVENTS.map(orjson.dumps) | JSON.map(orjson.dumps))
def test_any_record_value_gives_a_change_or_a_decode_error(value: bytes) -> None:
    try:
        change = decode_value(value, where="t[0]@0", offset=0)
    except DecodeError as error:
        inside(error, value)
    else:
        assert type(change) is Change
