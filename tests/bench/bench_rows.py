"""Cost of a row on the hot path, in microseconds: decode, encode and envelope; and the reader.

    python -m tests.bench.bench_rows

Eight columns: bigint key, two short texts, numeric(12,2), timestamptz, boolean, integer, text of 50.
One process, no server; the best of several repeats, so that other load on the machine counts little.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from struct import pack

from streamer.changes.envelope import RowTemplate, SourceTemplate, decode_value
from streamer.postgres import pgoutput
from streamer.postgres.pgoutput import Relation, RelationColumn
from streamer.postgres.rows import RowEncoder

REPEATS = 5
ROWS = 20_000

COLUMNS = (
    ("id", 20, "number", b"1234567"),
    ("first_name", 25, "text", b"Anne"),
    ("last_name", 25, "text", "Kretchmär".encode()),
    ("amount", 1700, "numeric", b"12345.67"),
    ("made_at", 1184, "timestamptz", b"2026-11-04 13:51:30.123456+00"),
    ("paid", 16, "bool", b"t"),
    ("quantity", 23, "number", b"42"),
    ("note", 25, "text", b"fifty characters of a note that says quite little."),
)


def tuple_data(values: list[bytes | None]) -> bytes:
    parts = [pack(">h", len(values))]
    parts += [b"n" if v is None else b"t" + pack(">i", len(v)) + v for v in values]
    return b"".join(parts)


def main() -> None:
    values: list[bytes | None] = [value for *_, value in COLUMNS]
    row = tuple_data(values)
    key = tuple_data([values[0], *([None] * (len(values) - 1))])
    insert = b"I\x00\x00\x40\x01N" + row
    update = b"U\x00\x00\x40\x01N" + row
    update_full = b"U\x00\x00\x40\x01O" + row + b"N" + row
    delete = b"D\x00\x00\x40\x01K" + key
    line = b"\t".join(value for *_, value in COLUMNS) + b"\n"
    columns = tuple(RelationColumn(name, oid, -1, name == "id") for name, oid, *_ in COLUMNS)
    relation = Relation(0x4001, "public", "orders", "d", columns)
    rows = RowEncoder(relation, [kind for _, _, kind, _ in COLUMNS], ["id"])
    source = SourceTemplate(
        version="0.1.0", name="shop", db="shop", schema="public", table="orders", schema_id="0" * 16, epoch=1
    )

    def transaction() -> RowTemplate:
        return source.transaction(
            commit_us=1795312202485585,
            xid=787,
            commit_lsn=25919700,
            previous_commit_lsn=25919544,
            now_us=1795312202495163,
        )

    template = transaction()

    def create() -> bytes:
        return template.create(rows.insert(insert)[1], 25919648, 3)

    value = create()
    report("insert -> key, after", lambda: rows.insert(insert))
    report("insert -> envelope", create)
    report("update (no old tuple)", lambda: rows.update(update))
    report("update (full)", lambda: rows.update(update_full))
    report("delete (key)", lambda: rows.delete(delete))
    report("copy_row", lambda: rows.copy_row(line))
    report("template of a transaction", transaction)
    report("insert, plain decode", lambda: pgoutput.decode(insert))
    report("decode_value", lambda: decode_value(value, where="t[0]@0", offset=0))
    print(f"a value has {len(value)} bytes, a payload {len(insert)}")


def report(what: str, call: Callable[[], object]) -> None:
    seconds = min(timeit.repeat(call, number=ROWS, repeat=REPEATS))
    print(f"{what:<28}{seconds / ROWS * 1e6:6.2f} us")


if __name__ == "__main__":
    main()
