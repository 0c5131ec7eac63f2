"""Bytes, moments and spans of time as people read them. Pure."""

from __future__ import annotations

from datetime import datetime, tzinfo

UNKNOWN = "-"  # a figure that is not known, which is not zero


def size(value: int | None) -> str:
    """Bytes as people read them; unknown is a dash."""
    if value is None:
        return UNKNOWN
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(value: float | None) -> str:
    """A time span in its two largest units."""
    if value is None:
        return UNKNOWN
    left = max(0, int(value))
    words: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not words):
            words.append(f"{count}{unit}")
    return " ".join(words[:2])


def moment(at_us: int | None, zone: tzinfo) -> str:
    """By the clock of the zone."""
    if at_us is None:
        return UNKNOWN
    return datetime.fromtimestamp(at_us // 1_000_000, zone).strftime("%Y-%m-%d %H:%M:%S")
