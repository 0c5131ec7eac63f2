"""Versions of a Redis source's events: (epoch, microseconds of the server, sequence). Pure.

The server's clock orders what is read from it, as all of it is read over one connection. A clock that
goes back (a failover, an operator, a restart) is not followed: the microseconds stay where they are
and the sequence counts on, so that no later state ever has a lower version (H21).
"""

from __future__ import annotations


class Versions:
    """`micros`: the last one given, as the position has it."""

    __slots__ = ("_next", "micros")

    def __init__(self, after_us: int) -> None:
        self.micros = after_us
        self._next = 0

    def take(self, server_us: int, count: int) -> tuple[int, int]:
        """The versions of `count` events that were read at `server_us`: (micros, first sequence)."""
        if server_us > self.micros:
            self.micros = server_us
            self._next = 0
        first = self._next
        self._next += count
        return self.micros, first
