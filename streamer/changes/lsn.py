"""An LSN is an int inside and 'X/Y' text only at the edge (PostgreSQL manual, pg_lsn type)."""

from __future__ import annotations

from streamer.errors import ConfigError


def parse_lsn(text: str) -> int:
    """'16/B374D848' -> int (bytes from the start of the WAL)."""
    high, slash, low = text.partition("/")
    try:
        if not slash:
            raise ValueError(text)
        return (int(high, 16) << 32) | int(low, 16)
    except ValueError:
        raise ConfigError(f"{text!r} is not an LSN", fix="write it as PostgreSQL does: 16/B374D848") from None


def format_lsn(lsn: int) -> str:
    """int -> '16/B374D848'."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
