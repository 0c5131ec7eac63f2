"""Which old tuple means what, and that the stream and COPY give the same bytes."""

from __future__ import annotations

from struct import pack

import orjson
import pytest

from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import DecodeError, FatalError
from streamer.postgres.pgoutput import Relation, RelationColumn
from streamer.postgres.rows import RowEncoder

OID = 16385
HEAD = pack(">I", OID)
UNCHANGED = object()


def row(*values: object) -> bytes:
    parts = [pack(">h", len(values))]
    for value in values:
        if isinstance(value, bytes):
            parts.append(b"t" + pack(">i", len(value)) + value)
        else:
            parts.append(b"n" if value is None else b"u")
    return b"".join(parts)


def encoder(identity: str = "d", key: tuple[str, ...] = ("id",)) -> RowEncoder:
    columns = tuple(
        RelationColumn(name, oid, -1, identity == "f" or name in key)
        for name, oid in (("id", 20), ("100%", 25), ("paid", 16))
    )
    return RowEncoder(Relation(OID, "public", "t", identity, columns), ["number", "text", "bool"], key)


def test_insert_gives_key_and_row() -> None:
    assert encoder().insert(b"I" + HEAD + b"N" + row(b"7", 'a"\tü'.encode(), None)) == (
        b'{"id":7}',
        '{"id":7,"100%":"a\\"\\tü","paid":null}'.encode(),
    )


def test_update_under_default_identity_has_no_before() -> None:
    assert encoder().update(b"U" + HEAD + b"N" + row(b"7", UNCHANGED, b"t")) == (
        b'{"id":7}',
        b"null",
        b'{"id":7,"100%":"' + UNAVAILABLE.encode() + b'","paid":true}',
        None,
        b"null",
    )


def test_key_change_under_default_identity_gives_the_old_key() -> None:
    message = b"U" + HEAD + b"K" + row(b"7", None, None) + b"N" + row(b"8", b"a", b"t")
    assert encoder().update(message) == (
        b'{"id":8}',
        b"null",
        b'{"id":8,"100%":"a","paid":true}',
        b'{"id":7}',
        b'{"id":7,"100%":null,"paid":null}',
    )


def test_old_key_that_equals_the_key_is_no_key_change() -> None:
    message = b"U" + HEAD + b"K" + row(b"7", None, None) + b"N" + row(b"7", b"a", b"t")
    key, before, _, old_key, _ = encoder().update(message)
    assert (key, before, old_key) == (b'{"id":7}', b"null", None)


def test_unchanged_key_column_is_taken_from_the_old_key_and_other_columns_are_not() -> None:
    message = b"U" + HEAD + b"K" + row(b"7", b"long", None) + b"N" + row(b"8", UNCHANGED, UNCHANGED)
    key, _, after, old_key, _ = encoder(key=("id", "100%")).update(message)
    assert key == b'{"id":8,"100%":"long"}'
    assert old_key == b'{"id":7,"100%":"long"}'
    assert orjson.loads(after) == {"id": 8, "100%": "long", "paid": UNAVAILABLE}


def test_unchanged_key_column_without_an_old_key_is_an_error() -> None:
    with pytest.raises(DecodeError, match="key column 100% is not in the WAL"):
        encoder(key=("id", "100%")).update(b"U" + HEAD + b"N" + row(b"7", UNCHANGED, b"t"))


def test_full_identity_has_before_and_fills_unchanged_values() -> None:
    message = b"U" + HEAD + b"O" + row(b"7", b"long", b"f") + b"N" + row(b"7", UNCHANGED, b"t")
    assert encoder("f").update(message) == (
        b'{"id":7}',
        b'{"id":7,"100%":"long","paid":false}',
        b'{"id":7,"100%":"long","paid":true}',
        None,
        b"null",
    )


def test_a_real_value_that_reads_like_the_placeholder_is_kept_under_full_identity() -> None:
    text = UNAVAILABLE.encode()
    message = b"U" + HEAD + b"O" + row(b"7", b"old", b"f") + b"N" + row(b"7", text, UNCHANGED)
    after = encoder("f").update(message)[2]
    assert orjson.loads(after) == {"id": 7, "100%": UNAVAILABLE, "paid": False}


def test_key_change_under_full_identity() -> None:
    message = b"U" + HEAD + b"O" + row(b"7", b"a", b"f") + b"N" + row(b"8", b"a", b"f")
    key, _, after, old_key, old_before = encoder("f").update(message)
    assert (key, old_key) == (b'{"id":8}', b'{"id":7}')
    assert old_before == b'{"id":7,"100%":"a","paid":false}'
    assert after == b'{"id":8,"100%":"a","paid":false}'


def test_delete_has_the_key_columns_or_the_whole_row() -> None:
    assert encoder().delete(b"D" + HEAD + b"K" + row(b"7", None, None)) == (
        b'{"id":7}',
        b'{"id":7,"100%":null,"paid":null}',
    )
    assert encoder("f").delete(b"D" + HEAD + b"O" + row(b"7", b"a", b"t")) == (
        b'{"id":7}',
        b'{"id":7,"100%":"a","paid":true}',
    )


def test_h27_rows_without_a_key_have_none() -> None:
    rows = encoder("f", ())
    old, new = row(b"7", b"a", b"t"), row(b"8", b"a", b"t")
    assert rows.insert(b"I" + HEAD + b"N" + new)[0] is None
    assert rows.delete(b"D" + HEAD + b"O" + old)[0] is None
    key, before, after, old_key, _ = rows.update(b"U" + HEAD + b"O" + old + b"N" + new)
    assert (key, old_key) == (None, None)
    assert orjson.loads(before)["id"] == 7
    assert orjson.loads(after)["id"] == 8


def test_h22_key_outside_the_replica_identity_is_refused() -> None:
    relation = Relation(OID, "public", "t", "i", (RelationColumn("id", 20, -1, False),))
    with pytest.raises(FatalError, match="not in the replica identity"):
        RowEncoder(relation, ["number"], ["id"])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b"7\tplain\tt\n", (b"7", b"plain", b"t")),
        (b"7\t\\N\t\\N", (b"7", None, None)),
        (rb"7" b"\t" rb"\\N \b\f\n\r\t\v\\." b"\tf\n", (b"7", b"\\N \b\f\n\r\t\v\\.", b"f")),
        (b"7\t\t\\N\n", (b"7", b"", None)),
    ],
)
def test_copy_line_and_stream_give_the_same_bytes(line: bytes, values: tuple[bytes | None, ...]) -> None:
    assert encoder().copy_row(line) == encoder().insert(b"I" + HEAD + b"N" + row(*values))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"7\tx\n", "2 fields, the relation 3"),
        (b"7\tx\tt\t\n", "4 fields, the relation 3"),
        (b"7\tx\\q\tt\n", "column 100% cannot be read"),
        (b"7\tx\\\tt\n", "column 100% cannot be read"),
        (b"7\t\xff\tt\n", "column 100% cannot be read"),
        (b"7\tx\tyes\n", "column paid cannot be read: neither t nor f at byte 4"),
    ],
)
def test_malformed_copy_lines_are_errors(line: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=what) as error:
        encoder().copy_row(line)
    assert error.value.where == "public.t"


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"I" + HEAD + b"N" + row(b"7", b"a"), "2 columns, the relation 3 at byte 6"),
        (b"I" + HEAD + b"N" + row(b"7", b"a", b"t", None), "4 columns, the relation 3 at byte 6"),
        (b"I" + HEAD + b"N" + row(b"7", b"a", b"t")[:-1], "cut off"),
        (b"I" + HEAD + b"N" + row(b"7", b"a", b"t") + b"x", "1 bytes too many"),
        (b"I" + HEAD + b"N" + row(b"7", b"\xc3", b"t"), "column 100% cannot be read.*at byte 19"),
        (b"I" + HEAD + b"N" + row(b"07", b"a", b"t"), "column id cannot be read: not an integer at byte 13"),
        (b"I" + HEAD + b"N" + row(b"", b"a", b"t"), "column id cannot be read: not an integer at byte 13"),
        (b"I" + HEAD + b"N" + row(b"7", b"a", UNCHANGED), "column paid of an insert is marked unchanged"),
        (
            b"I" + HEAD + b"N" + row(b"7", b"a", b"t").replace(b"t\0\0\0\1a", b"b\0\0\0\1a"),
            "100% is in binary form",
        ),
        (
            b"I" + pack(">I", 1) + b"N" + row(b"7", b"a", b"t"),
            "a message of this relation was expected, not Insert",
        ),
        (b"D" + HEAD + b"K" + row(b"7", None, None), "a message of this relation was expected"),
        (b"", "empty"),
    ],
)
def test_malformed_inserts_are_errors(payload: bytes, what: str) -> None:
    if payload[:1] == b"D":
        payload = b"B" + bytes(20)
    with pytest.raises(DecodeError, match=what) as error:
        encoder().insert(payload)
    assert error.value.where == "public.t"


def test_a_message_of_another_kind_is_an_error() -> None:
    delete = b"D" + HEAD + b"K" + row(b"7", None, None)
    insert = b"I" + HEAD + b"N" + row(b"7", b"a", b"t")
    for method, payload in (
        (encoder().insert, delete),
        (encoder().update, delete),
        (encoder().update, insert),
        (encoder().delete, insert),
    ):
        with pytest.raises(DecodeError):
            method(payload)


def test_columns_of_ours_are_passed_over() -> None:
    """A table that is the target of another Tailrace: the stream has them, COPY is not asked for them."""
    names = ("_tailrace_epoch", "id", "_tailrace_source", "name")
    columns = tuple(RelationColumn(name, 25, -1, name == "id") for name in names)
    made = RowEncoder(Relation(OID, "public", "t", "d", columns), ["number", "text"], ("id",))
    whole = (b'{"id":7}', b'{"id":7,"name":"a"}')
    assert made.insert(b"I" + HEAD + b"N" + row(b"1", b"7", b"{}", b"a")) == whole
    assert made.copy_row(b"7\ta") == whole
    old, new = row(None, b"6", None, None), row(b"2", b"7", UNCHANGED, b"a")
    moved = made.update(b"U" + HEAD + b"K" + old + b"N" + new)
    assert moved == (*whole[:1], b"null", whole[1], b'{"id":6}', b'{"id":6,"name":null}')
    assert made.delete(b"D" + HEAD + b"K" + old) == moved[3:]
    with pytest.raises(DecodeError, match="column id cannot be read"):
        made.insert(b"I" + HEAD + b"N" + row(b"1", b"x", b"{}", b"a"))
