"""The messages inside COPY BOTH of a replication connection. Pure: bytes in, values out, no I/O.

Wire grammar (PostgreSQL manual, "Streaming Replication Protocol", START_REPLICATION):

    server:  XLogData   'w' Int64 start_lsn  Int64 end_lsn  Int64 send_time  Byte[n] payload
             Keepalive  'k' Int64 wal_end  Int64 send_time  Byte1 reply_requested
    client:  Status     'r' Int64 written_lsn  Int64 flushed_lsn  Int64 applied_lsn
                        Int64 client_time  Byte1 reply_requested

For logical decoding `start_lsn` is the LSN of the change in `payload` (0 where it has none).
Times on the wire are microseconds since 2000-01-01; here since 1970-01-01, UTC.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from streamer.errors import DecodeError
from streamer.postgres.pgoutput import POSTGRES_EPOCH_US

XLOG_HEADER = Struct(">BQQq")  # for hot loops: unpack_from, then the payload is data[XLOG_HEADER.size:]

_KEEPALIVE = Struct(">BQqB")
_STATUS = Struct(">BQQQqB")


class XLogData(NamedTuple):
    start_lsn: int
    end_lsn: int
    send_us: int
    payload: bytes


class Keepalive(NamedTuple):
    wal_end: int
    send_us: int
    reply_requested: bool


def parse(data: bytes) -> XLogData | Keepalive:
    """One CopyData body from the server; DecodeError on anything else."""
    if data[:1] == b"w":
        if len(data) < XLOG_HEADER.size:
            raise DecodeError(
                f"XLogData is cut off: {len(data)} of {XLOG_HEADER.size} bytes", offset=len(data)
            )
        _, start_lsn, end_lsn, send_time = XLOG_HEADER.unpack_from(data)
        return XLogData(start_lsn, end_lsn, send_time + POSTGRES_EPOCH_US, data[XLOG_HEADER.size :])
    if data[:1] == b"k":
        if len(data) != _KEEPALIVE.size:
            raise DecodeError(f"Keepalive has {len(data)} bytes, not {_KEEPALIVE.size}", offset=len(data))
        _, wal_end, send_time, reply = _KEEPALIVE.unpack(data)
        if reply > 1:
            raise DecodeError(f"Keepalive has reply_requested {reply}", offset=_KEEPALIVE.size - 1)
        return Keepalive(wal_end, send_time + POSTGRES_EPOCH_US, bool(reply))
    raise DecodeError(f"unknown replication message {data[:1]!r}", offset=0)


def status_update(flushed_lsn: int, *, now_us: int, reply_requested: bool = False) -> bytes:
    """Standby status update: everything up to `flushed_lsn` may be forgotten by the server (H4).

    The three LSNs are one: what is durable in Kafka is also written and applied.
    """
    return _STATUS.pack(
        ord("r"), flushed_lsn, flushed_lsn, flushed_lsn, now_us - POSTGRES_EPOCH_US, reply_requested
    )
