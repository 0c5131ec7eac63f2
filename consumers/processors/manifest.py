"""RocksDB's MANIFEST, the log of which tables a database consists of: whether it ends with a whole record.

RocksDB takes what it cannot read at the end for a record that a crash cut off, and leaves it out; at some
of it, it hangs. If a bad disk did it, tables are left out that were in use, and later writes are kept:
state with a hole in it, and with the newest mark. A killed process leaves whole records; the power cut, or
the full disk, that cuts one costs that the state is read again. (Tables that the MANIFEST does not name
prove nothing: most kills under load leave some, by a flush or a compaction that was under way.) Not seen
here are a MANIFEST that ends between two records, and bytes of another value, whose checksums are RocksDB's
to compare. Only reads.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

_BLOCK_BYTES = 32 * 2**10
_HEADER = struct.Struct("<IHB")  # checksum, length of what follows, kind; in no block's last six bytes
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4  # the others are of write-ahead logs: there, they end the reading
_NAME = re.compile(rb"MANIFEST-\d+\n")


def is_cut_off(db: Path) -> bool:
    """To be asked before RocksDB opens it, which begins another MANIFEST. False where it says itself what is
    wrong; raises OSError."""
    try:
        current = (db / "CURRENT").read_bytes()
        if not _NAME.fullmatch(current):
            return False
        log = (db / current.decode().rstrip()).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    at, kind = 0, _LAST
    while at < len(log):
        room = min(_BLOCK_BYTES - at % _BLOCK_BYTES, len(log) - at)
        if room < _HEADER.size:
            if (at + room) % _BLOCK_BYTES:
                return True
            at += room
            continue
        _, length, kind = _HEADER.unpack_from(log, at)
        if not _FULL <= kind <= _LAST or _HEADER.size + length > room:
            return True
        at += _HEADER.size + length
    return kind in (_FIRST, _MIDDLE)
