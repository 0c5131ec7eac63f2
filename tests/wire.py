"""Bytes as the server sends them in COPY BOTH: pgoutput messages inside XLogData, and keepalives."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import Any

from streamer.postgres.pgoutput import POSTGRES_EPOCH_US

Values = Sequence[Any]  # str, None for NULL, ... for an unchanged value that is not in the WAL


def xlog(lsn: int, payload: bytes) -> bytes:
    return b"w" + pack(">QQq", lsn, lsn, 0) + payload


def begin(commit_lsn: int, xid: int, commit_us: int) -> bytes:
    return xlog(0, b"B" + pack(">QqI", commit_lsn, commit_us - POSTGRES_EPOCH_US, xid))


def commit(commit_lsn: int, end_lsn: int, commit_us: int) -> bytes:
    return xlog(end_lsn, b"C\0" + pack(">QQq", commit_lsn, end_lsn, commit_us - POSTGRES_EPOCH_US))


def relation(oid: int, table: str, columns: Sequence[str], key: Sequence[str], identity: str = "d") -> bytes:
    text = b"R" + pack(">I", oid) + b"public\0" + table.encode() + b"\0" + identity.encode()
    text += pack(">H", len(columns))
    for name in columns:
        text += (b"\1" if name in key else b"\0") + name.encode() + b"\0" + pack(">Ii", 25, -1)
    return xlog(0, text)


def row(values: Values) -> bytes:
    text = pack(">H", len(values))
    for value in values:
        if value is None:
            text += b"n"
        elif value is ...:
            text += b"u"
        else:
            raw = value.encode()
            text += b"t" + pack(">I", len(raw)) + raw
    return text


def insert(lsn: int, oid: int, values: Values) -> bytes:
    return xlog(lsn, b"I" + pack(">I", oid) + b"N" + row(values))


def update(lsn: int, oid: int, values: Values, old_key: Values | None = None) -> bytes:
    old = b"" if old_key is None else b"K" + row(old_key)
    return xlog(lsn, b"U" + pack(">I", oid) + old + b"N" + row(values))


def delete(lsn: int, oid: int, old_key: Values) -> bytes:
    return xlog(lsn, b"D" + pack(">I", oid) + b"K" + row(old_key))


def truncate(lsn: int, *oids: int) -> bytes:
    return xlog(lsn, b"T" + pack(">IB", len(oids), 0) + b"".join(pack(">I", oid) for oid in oids))


def message(lsn: int, prefix: str, content: bytes, *, transactional: bool) -> bytes:
    flags = b"\1" if transactional else b"\0"
    return xlog(
        lsn, b"M" + flags + pack(">Q", lsn) + prefix.encode() + b"\0" + pack(">I", len(content)) + content
    )


def keepalive(wal_end: int, *, reply: bool = False) -> bytes:
    return b"k" + pack(">QqB", wal_end, 0, reply)
