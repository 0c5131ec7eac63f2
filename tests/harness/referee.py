"""What the log must hold, found out without Tailrace: a second slot on the source, read by SQL.

Owns: a pgoutput slot beside capture's and the count of row changes of every transaction after it was
made, by the rule of H29 (a key change counts two, a truncate one a relation). It shares no code with
the capture side.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

HEAD_BYTES = 32  # what counting needs of a message; whole rows only where a full identity hides a key change
FETCH_ROWS = 5_000


class Referee:
    """`expected` maps a commit LSN to the row changes of that transaction."""

    def __init__(self, url: str, *, slot: str, publication: str) -> None:
        self.expected: dict[int, int] = {}
        self._url = url
        self._slot = slot
        self._publication = publication
        self._relations: dict[int, tuple[list[int], int]] = {}  # oid -> (indexes of the key, columns)

    def open(self) -> None:
        """Make the slot. The publication must be there: old WAL is decoded with old catalogues."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self._slot])

    def close(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                [self._slot],
            )

    def read(self) -> None:
        """Count what has been committed up to now. What a crashed server shows twice is the same twice."""
        query = sql.SQL(
            "SELECT CASE WHEN get_byte(data, 0) = 82 OR (get_byte(data, 0) = 85 AND get_byte(data, 5) = 79)"
            " THEN data ELSE substr(data, 1, {}) END FROM pg_logical_slot_get_binary_changes({}, NULL, NULL,"
            " 'proto_version', '1', 'publication_names', {})"
        ).format(HEAD_BYTES, self._slot, self._publication)
        with psycopg.connect(self._url) as connection:
            keys = self._primary_keys(connection)
            with connection.cursor(name="referee", binary=True) as cursor:
                cursor.itersize = FETCH_ROWS
                cursor.execute(query)
                self._count(cursor, keys)

    def _primary_keys(self, connection: psycopg.Connection[Any]) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for oid, column in connection.execute(
            "SELECT i.indrelid::int8, a.attname FROM pg_index i JOIN pg_attribute a"
            " ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey::int2[]) WHERE i.indisprimary"
        ):
            found.setdefault(oid, set()).add(column)
        return found

    def _count(self, messages: Any, keys: dict[int, set[str]]) -> None:
        commit_lsn = changes = 0
        for (data,) in messages:
            kind = data[:1]
            if kind == b"B":
                commit_lsn, changes = int.from_bytes(data[1:9], "big"), 0
            elif kind == b"C":
                if changes:
                    self.expected[commit_lsn] = changes
            elif kind in (b"I", b"D"):
                changes += 1
            elif kind == b"T":
                changes += int.from_bytes(data[1:5], "big")
            elif kind == b"U":
                changes += 2 if self._key_changed(data) else 1
            elif kind == b"R":
                self._relation(data, keys)

    def _relation(self, data: bytes, keys: dict[int, set[str]]) -> None:
        oid = int.from_bytes(data[1:5], "big")
        rest = data[5:].split(b"\0", 2)[2]
        count, place = int.from_bytes(rest[1:3], "big"), 3
        names = []
        for _ in range(count):
            end = rest.index(b"\0", place + 1)
            names.append(rest[place + 1 : end].decode())
            place = end + 9
        key = keys.get(oid, set())
        self._relations[oid] = ([i for i, name in enumerate(names) if name in key], count)

    def _key_changed(self, data: bytes) -> bool:
        """'K': the old key is sent only when it changed; 'O': the whole old row, so compare."""
        if data[5:6] == b"K":
            return True
        if data[5:6] == b"N":
            return False
        key, _ = self._relations[int.from_bytes(data[1:5], "big")]
        old, place = _tuple(data, 6)
        new, _ = _tuple(data, place + 1)
        return any(old[i] != new[i] for i in key)


def _tuple(data: bytes, place: int) -> tuple[list[bytes | None], int]:
    """(values, place after them) of a TupleData; None stands for null and for unchanged TOAST."""
    values: list[bytes | None] = []
    count = int.from_bytes(data[place : place + 2], "big")
    place += 2
    for _ in range(count):
        kind = data[place : place + 1]
        place += 1
        if kind in (b"n", b"u"):
            values.append(None)
            continue
        length = int.from_bytes(data[place : place + 4], "big")
        values.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    return values, place
