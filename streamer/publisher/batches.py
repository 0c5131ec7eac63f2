"""Record batches while they fill: one open batch a partition, sealed when full.

Record batch, magic 2 (Kafka documentation, "Message format"; all integers big-endian):

    0  baseOffset i64 | 8 batchLength i32 (of what follows) | 12 partitionLeaderEpoch i32 | 16 magic i8
    17 crc u32 (CRC-32C of all from 21 on) | 21 attributes i16 (bits 0-2 codec, bit 4 transactional)
    23 lastOffsetDelta i32 | 27 baseTimestamp i64 | 35 maxTimestamp i64
    43 producerId i64 | 51 producerEpoch i16 | 53 baseSequence i32 | 57 records i32 | 61 records, compressed

aiokafka's builder writes the records; this module compresses them, because aiokafka fixes lz4 at
level 9, which costs seven times the CPU of level 1 for 4% of size, and at a moment that suits us:
a batch is compressed when it is full, so that waiting rows take little memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final
from zlib import crc32

import cramjam
from aiokafka.codec import snappy_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from streamer.changes.topics import NULL_KEY_PARTITION
from streamer.errors import BadRecordError

BATCH_BYTES = 2**20  # uncompressed; larger ones gain nothing and delay the first record
BATCH_SHARE = 2  # a batch is at most 1/2 of max.message.bytes, so that it never meets the topic's limit
RECORD_OVERHEAD_BYTES = 128  # batch header (61) and a record's varints, rounded up
COMPRESS_FROM_BYTES = 512  # below it the frame costs more than it saves
KEY_SHOWN_CHARS = 200

_HEADER_BYTES = 61
_CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_LZ4_LEVEL = 1
_ZSTD_LEVEL = 1
_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


RAISE_LIMIT = "raise kafka.topics.max_message (and the topic's max.message.bytes: kafka-configs --alter)"
_LEAVE_OUT = (
    f"{RAISE_LIMIT}, or leave its table out with `exclude` in `tables:` of its source "
    "(what it has missed when it is put back, only `tailrace reset` copies)"
)


class OversizeError(BadRecordError):
    """A row above the message limit; nothing of it was appended. `fix`: of a source without tables."""

    def __init__(
        self, topic: str, key: bytes | None, size: int, limit: int, *, fix: str = _LEAVE_OUT
    ) -> None:
        shown = "null" if key is None else key.decode("utf-8", "replace")[:KEY_SHOWN_CHARS]
        super().__init__(
            f"a row of {size:,} bytes is above the message limit of {limit:,}; its key is {shown}",
            where=f"topic {topic}",
            fix=fix,
        )
        self.topic = topic
        self.key = key
        self.size = size
        self.limit = limit


class Waiting:
    """What is appended and not yet taken by a flush: bytes of memory, and records."""

    __slots__ = ("bytes", "records")

    def __init__(self) -> None:
        self.bytes = 0
        self.records = 0


class Batch:
    """A record batch; takes the part of aiokafka's BatchBuilder in `send_batch`."""

    __slots__ = ("_body", "_codec", "_header", "builder", "count", "timestamp_ms", "write")

    def __init__(
        self, limit_bytes: int, compression: str, timestamp_ms: int, *, transactional: bool = True
    ) -> None:
        self.builder = DefaultRecordBatchBuilder(
            2, 0, is_transactional=int(transactional), producer_id=-1, producer_epoch=-1, base_sequence=0,
            batch_size=limit_bytes,
        )  # fmt: skip
        self.write = self.builder.append
        self.timestamp_ms = timestamp_ms
        self.count = 0
        self._codec = compression
        self._header: bytearray | None = None
        self._body: bytes = b""

    def add(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = _NO_HEADERS
    ) -> int | None:
        """Append a record; its size in bytes, or None when the batch is full (never when it is empty)."""
        written = self.write(self.count, self.timestamp_ms, key, value, headers)
        if written is None:
            return None
        self.count += 1
        return int(written.size)

    def seal(self) -> int:
        """Compress; no more records. Returns the size in bytes."""
        if self._header is None:
            plain = self.builder.build()
            del self.builder, self.write
            header, body = plain[:_HEADER_BYTES], bytes(memoryview(plain)[_HEADER_BYTES:])
            packed = _compress(self._codec, body) if len(body) >= COMPRESS_FROM_BYTES else None
            if packed is not None and len(packed) < len(body):
                attributes = struct.unpack_from(">h", header, 21)[0] | _CODECS[self._codec]
                struct.pack_into(">h", header, 21, attributes)
                self._body = packed
            else:
                self._body = body
            struct.pack_into(">i", header, 8, len(header) + len(self._body) - 12)
            self._header = header
        return _HEADER_BYTES + len(self._body)

    # What follows is called by aiokafka, under its names.

    def record_count(self) -> int:
        return self.count

    def close(self) -> None:
        self.seal()

    def closed(self) -> bool:
        return self._header is not None

    def size(self) -> int:
        return self.seal()

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self.seal()
        assert self._header is not None
        struct.pack_into(">qhi", self._header, 43, producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        assert self._header is not None
        whole = self._header + self._body
        struct.pack_into(">I", whole, 17, calc_crc32c(whole[21:]))
        return bytes(whole)


def _compress(codec: str, body: bytes) -> bytes | None:
    if codec == "lz4":
        # Kafka reads only frames of independent blocks (KIP-57).
        frame = cramjam.lz4.Compressor(level=_LZ4_LEVEL, content_checksum=False, block_linked=False)
        frame.compress(body)
        return bytes(frame.finish())
    if codec == "zstd":
        return bytes(cramjam.zstd.compress(body, level=_ZSTD_LEVEL))
    if codec == "gzip":
        return bytes(cramjam.gzip.compress(body))
    if codec == "snappy":
        return bytes(snappy_encode(body))  # with the framing that Java clients write
    return None


class Topic:
    """Where rows of one data topic are appended. Made by `Publisher.topic`."""

    __slots__ = (
        "_batch_bytes", "_clock", "_compression", "_limit", "_open", "_sealed", "_touched", "_transactional",
        "_waiting", "name", "partitions",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        partitions: int,
        max_message_bytes: int,
        compression: str,
        clock: Callable[[], float],
        waiting: Waiting,
        touched: set[Topic],
        transactional: bool = True,
    ) -> None:
        self.name = name
        self.partitions = partitions
        self._batch_bytes = min(BATCH_BYTES, max_message_bytes // BATCH_SHARE)
        self._limit = max_message_bytes - RECORD_OVERHEAD_BYTES
        self._compression = compression
        self._clock = clock
        self._waiting = waiting
        self._touched = touched
        self._transactional = transactional
        self._open: list[Batch | None] = [None] * partitions
        self._sealed: dict[int, list[Batch]] = {}

    def append(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = _NO_HEADERS
    ) -> None:
        """Add one record to the partition of its key. Hot path. Raises OversizeError."""
        partition = NULL_KEY_PARTITION if key is None else crc32(key) % self.partitions
        batch = self._open[partition]
        if batch is not None:
            written = batch.write(batch.count, batch.timestamp_ms, key, value, headers)
            if written is not None:
                batch.count += 1
                waiting = self._waiting
                waiting.bytes += written.size
                waiting.records += 1
                return
        self._open_batch(partition, key, value, headers)

    def _open_batch(
        self, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        size = len(key or b"") + len(value or b"")
        if size > self._limit:
            raise OversizeError(self.name, key, size, self._limit)
        full = self._open[partition]
        if full is not None:
            plain_bytes = full.builder.size() - _HEADER_BYTES
            self._waiting.bytes += full.seal() - plain_bytes
            self._sealed.setdefault(partition, []).append(full)
        timestamp_ms = int(self._clock() * 1000)
        batch = Batch(self._batch_bytes, self._compression, timestamp_ms, transactional=self._transactional)
        self._waiting.bytes += batch.add(key, value, headers) or 0
        self._waiting.records += 1
        self._open[partition] = batch
        self._touched.add(self)

    @property
    def limit_bytes(self) -> int:
        """The largest key and value together that `append` takes."""
        return self._limit

    def take(self) -> dict[int, list[Batch]]:
        """All batches since the last call, by partition, in order."""
        batches = self._sealed
        for partition, batch in enumerate(self._open):
            if batch is not None:
                batches.setdefault(partition, []).append(batch)
                self._open[partition] = None
        self._sealed = {}
        return batches
