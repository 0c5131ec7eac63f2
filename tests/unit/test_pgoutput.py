"""Every message of pgoutput's grammar, and every way in which one can be malformed."""

from __future__ import annotations

from struct import pack

import pytest

from streamer.errors import DecodeError
from streamer.postgres import replication_messages
from streamer.postgres.pgoutput import (
    POSTGRES_EPOCH_US,
    UNCHANGED,
    Begin,
    Binary,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    Type,
    Update,
    decode,
)
from streamer.postgres.replication_messages import Keepalive, XLogData

OID = pack(">I", 16385)
KEY = b"\x00\x02t\x00\x00\x00\x017n"
ROW = b"\x00\x02t\x00\x00\x00\x017t\x00\x00\x00\x02ab"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            b"B" + pack(">QqI", 0x1_0000_0010, 1_000_000, 787),
            Begin(0x1_0000_0010, POSTGRES_EPOCH_US + 10**6, 787),
        ),
        (b"C\x00" + pack(">QQq", 16, 24, -1), Commit(16, 24, POSTGRES_EPOCH_US - 1)),
        (
            b"M\x01" + pack(">Q", 5) + b"foo\x00" + pack(">i", 3) + b"\x00\xffx",
            Message(True, 5, "foo", b"\x00\xffx"),
        ),
        (b"M\x00" + pack(">Q", 5) + b"\x00" + pack(">i", 0), Message(False, 5, "", b"")),
        (b"O" + pack(">Q", 9) + "größe\0".encode(), Origin(9, "größe")),
        (
            b"R"
            + OID
            + b"public\0t\0d\x00\x02\x01id\0"
            + pack(">Ii", 23, -1)
            + b"\x00v\0"
            + pack(">Ii", 1700, 786438),
            Relation(
                16385,
                "public",
                "t",
                "d",
                (RelationColumn("id", 23, -1, True), RelationColumn("v", 1700, 786438, False)),
            ),
        ),
        (b"R" + OID + b"\0t\0n\x00\x00", Relation(16385, "pg_catalog", "t", "n", ())),
        (b"Y" + OID + b"public\0mood\0", Type(16385, "public", "mood")),
        (b"I" + OID + b"N" + ROW, Insert(16385, (b"7", b"ab"))),
        (b"I" + OID + b"N\x00\x00", Insert(16385, ())),
        (b"I" + OID + b"N\x00\x01b\x00\x00\x00\x01\x07", Insert(16385, (Binary(b"\x07"),))),
        (b"U" + OID + b"N\x00\x02t\x00\x00\x00\x017u", Update(16385, None, None, (b"7", UNCHANGED))),
        (b"U" + OID + b"K" + KEY + b"N" + ROW, Update(16385, (b"7", None), None, (b"7", b"ab"))),
        (b"U" + OID + b"O" + ROW + b"N" + ROW, Update(16385, None, (b"7", b"ab"), (b"7", b"ab"))),
        (b"D" + OID + b"K" + KEY, Delete(16385, (b"7", None), None)),
        (b"D" + OID + b"O" + ROW, Delete(16385, None, (b"7", b"ab"))),
        (b"T" + pack(">IB", 2, 3) + OID + OID, Truncate((16385, 16385), True, True)),
        (b"T" + pack(">IB", 0, 0), Truncate((), False, False)),
    ],
)
def test_each_message_is_read_and_nothing_more_or_less(payload: bytes, message: object) -> None:
    assert decode(payload) == message
    assert type(decode(payload)) is type(message)
    for size in range(len(payload)):
        with pytest.raises(DecodeError) as cut:
            decode(payload[:size])
        assert 0 <= cut.value.offset <= size
    with pytest.raises(DecodeError) as more:
        decode(payload + b"\x00")
    assert more.value.offset == len(payload)


@pytest.mark.parametrize(
    ("payload", "what", "offset"),
    [
        (b"", "empty", 0),
        (b"Z", "unknown pgoutput message type b'Z'", 0),
        (b"S" + pack(">IB", 1, 1), "unknown pgoutput message type b'S'", 0),
        (b"C\x02" + pack(">QQq", 1, 2, 3), "flags 2", 1),
        (b"M\x02" + pack(">Q", 5) + b"\0" + pack(">i", 0), "flags 2", 1),
        (b"M\x00" + pack(">Q", 5) + b"p\0" + pack(">i", -1), "length -1", 12),
        (b"M\x00" + pack(">Q", 5) + b"prefix", "no NUL", 10),
        (b"O" + pack(">Q", 9) + b"ab\xff\0", "not UTF-8", 11),
        (b"R" + OID + b"public\0t\0x\x00\x00", "replica identity b'x'", 14),
        (b"R" + OID + b"public\0t\0d\xff\xff", "-1 columns", 15),
        (b"R" + OID + b"public\0t\0d\x00\x01\x02id\0" + pack(">Ii", 23, -1), "flags 2", 17),
        (b"I" + OID + b"K" + ROW, "tuple kind b'K'", 5),
        (b"I" + OID + b"N\xff\xff", "-1 columns", 6),
        (b"I" + OID + b"N\x00\x01t\xff\xff\xff\xff", "length -1", 9),
        (b"I" + OID + b"N\x00\x01t\x7f\xff\xff\xff", "cut off", 13),
        (b"I" + OID + b"N\x00\x01x", "column kind b'x'", 8),
        (b"U" + OID + b"K" + KEY + b"K" + KEY, "tuple kind b'K' for the new row", 15),
        (b"D" + OID + b"N" + ROW, "tuple kind b'N'", 5),
        (b"T" + pack(">IB", 1, 4) + OID, "options 4", 5),
        (b"T" + pack(">IB", 0xFFFFFFFF, 0), "cut off", 6),
    ],
)
def test_malformed_bytes_are_an_error_that_says_where(payload: bytes, what: str, offset: int) -> None:
    with pytest.raises(DecodeError, match=what) as error:
        decode(payload)
    assert error.value.offset == offset


def test_xlogdata_and_keepalive_are_read_with_times_since_1970() -> None:
    data = b"w" + pack(">QQq", 16, 32, 5) + b"payload"
    assert replication_messages.parse(data) == XLogData(16, 32, POSTGRES_EPOCH_US + 5, b"payload")
    assert replication_messages.parse(b"k" + pack(">QqB", 48, 5, 1)) == Keepalive(
        48, POSTGRES_EPOCH_US + 5, True
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"w", b"w" + b"\0" * 23, b"k" + b"\0" * 16, b"k" + b"\0" * 18, b"k" + b"\0" * 16 + b"\2"],
)
def test_other_replication_messages_are_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        replication_messages.parse(data)


def test_status_update_confirms_one_lsn_as_written_flushed_and_applied() -> None:
    update = replication_messages.status_update(77, now_us=POSTGRES_EPOCH_US + 9, reply_requested=True)
    assert update == b"r" + pack(">QQQqB", 77, 77, 77, 9, 1)
