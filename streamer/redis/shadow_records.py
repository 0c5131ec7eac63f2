"""Where a row of a Redis source lives, and the records of the topic `<name>.__shadow.<source>`. Pure.

    key    {"entity":"scores","db":0,"key":"<base64 of the redis key>","row":"<the row's key, as JSON text>"}
    value  {"epoch":7,"digest":"<16 hex digits>"}      null when the row is gone

The digest is of the row's JSON, 64 bits: that two rows of one key have the same one by chance is one
in 1.8e19 a change. Nothing else of the row is kept: what was published is only compared, never shown.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from hashlib import blake2b
from typing import NamedTuple

from msgspec import MsgspecError, Struct, json
from orjson import dumps

from streamer.errors import DecodeError
from streamer.resetting import reset_steps

DIGEST_BYTES = 8


class Place(NamedTuple):
    """The rows of one Redis key in one entity (of a pivot: one row, `key` is its id).

    `single`: there is at most one row, and `head` is its key. Otherwise `head` is what the keys of all
    its rows begin with; the shadow keeps what comes behind it.
    """

    entity: str
    db: int
    key: bytes
    head: bytes
    single: bool


def digest_of(row: bytes) -> int:
    """64 bits, signed: an integer of SQLite."""
    return int.from_bytes(blake2b(row, digest_size=DIGEST_BYTES).digest(), "big", signed=True)


def dump_key(place: Place, row_key: bytes) -> bytes:
    return b'{"entity":%b,"db":%d,"key":"%b","row":%b}' % (
        dumps(place.entity),
        place.db,
        b2a_base64(place.key, newline=False),
        dumps(row_key.decode()),
    )


def dump_value(epoch: int, digest: int) -> bytes:
    return b'{"epoch":%d,"digest":"%b"}' % (epoch, _hex(digest))


def _hex(digest: int) -> bytes:
    return digest.to_bytes(DIGEST_BYTES, "big", signed=True).hex().encode()


class RecordKey(NamedTuple):
    entity: str
    db: int
    key: bytes
    row_key: bytes


class _Key(Struct, gc=False):
    entity: str
    db: int
    key: str
    row: str


class _Value(Struct, gc=False):
    epoch: int
    digest: str


_read_key = json.Decoder(_Key).decode
_read_value = json.Decoder(_Value).decode


def load_key(raw: bytes, where: str = "") -> RecordKey:
    """Raises DecodeError."""
    try:
        found = _read_key(raw)
        return RecordKey(found.entity, found.db, a2b_base64(found.key, strict_mode=True), found.row.encode())
    except (MsgspecError, ValueError) as error:
        raise _not_a_record(f"the key is none of a shadow: {error}", where) from None


def load_value(raw: bytes, where: str = "") -> tuple[int, int]:
    """(epoch, digest). Raises DecodeError."""
    try:
        found = _read_value(raw)
        digest = bytes.fromhex(found.digest)
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"a digest of {len(digest)} bytes")
        return found.epoch, int.from_bytes(digest, "big", signed=True)
    except (MsgspecError, ValueError) as error:
        raise _not_a_record(f"the value is none of a shadow: {error}", where) from None


def _not_a_record(what: str, where: str) -> DecodeError:
    fix = f"find out what wrote it; to have the shadow made anew {reset_steps('SOURCE')}"
    return DecodeError(what, offset=0, where=where, fix=fix)
