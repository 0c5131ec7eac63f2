"""Versions beside the rows (`version: side`): one row a key of the target's tables.

    versioned  the tables by number
    versions   (table, hash of the key): version of the event that wrote the row last

The key's hash is made in the target of its values, by the types' own hash functions: keys that are equal
there have one version, however they are spelt. Written in the rows' transaction, before the rows: a row
is written when no higher version than its own is there then.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.targets import postgres_state as state

_DDL = (
    """CREATE TABLE IF NOT EXISTS _tailrace.versioned (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, schema_name text NOT NULL, table_name text NOT NULL,
        UNIQUE (schema_name, table_name))""",
    """CREATE TABLE IF NOT EXISTS _tailrace.versions (
        table_id int, key_1 bigint, key_2 bigint, epoch int NOT NULL, lsn bigint NOT NULL,
        ordinal bigint NOT NULL, PRIMARY KEY (table_id, key_1, key_2)) WITH (fillfactor = 80)""",
)
_SEEDS = (0, 1)  # two hashes of 64 bits: no two keys share both
_THERE = "SELECT to_regclass('_tailrace.versions') IS NOT NULL"
_NUMBER = "SELECT id FROM _tailrace.versioned WHERE schema_name = $1 AND table_name = $2"
_ADD = "INSERT INTO _tailrace.versioned (schema_name, table_name) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_FORGET = "DELETE FROM _tailrace.versions WHERE table_id = $1"


async def ensure(connection: state.Connection, schema: str, table: str, *, made: bool) -> int:
    """The table's number. What an earlier table of that name had is forgotten when it is `made` now."""
    async with state.making(connection):
        there = await (await connection.execute(_THERE, prepare=False)).fetchone()
        if not there or not there[0]:
            await state.create(connection, _DDL)
        await connection.execute(_ADD, (schema, table), prepare=False)
        row = await (await connection.execute(_NUMBER, (schema, table), prepare=False)).fetchone()
        assert row is not None
        number = int(str(row[0]))
        if made:
            await connection.execute(_FORGET, (number,), prepare=False)
    return number


# SQL


def hashes(key: Sequence[str]) -> tuple[str, str]:
    """Expressions of the key's values -> expressions of its two hashes."""
    one, two = (f"hash_record_extended(ROW({', '.join(key)}), {seed})" for seed in _SEEDS)
    return one, two


def is_newer(number: int, key: tuple[str, str], sent: str) -> str:
    """Whether a higher version than `sent` is there of a key, given as expressions of its hashes."""
    return (
        f"EXISTS (SELECT FROM _tailrace.versions v WHERE v.table_id = {number} AND v.key_1 = {key[0]}"
        f" AND v.key_2 = {key[1]} AND (v.epoch, v.lsn, v.ordinal) > {sent})"
    )


def note(number: int, key: tuple[str, str], source: str, alias: str = "s") -> str:
    """Of what `source` sends with the columns e, l, o: kept where it is higher."""
    return (
        "INSERT INTO _tailrace.versions AS v (table_id, key_1, key_2, epoch, lsn, ordinal)"
        f" SELECT {number}, {key[0]}, {key[1]}, {alias}.e, {alias}.l, {alias}.o FROM {source}"
        " ON CONFLICT (table_id, key_1, key_2) DO UPDATE SET epoch = excluded.epoch, lsn = excluded.lsn,"
        " ordinal = excluded.ordinal"
        " WHERE (v.epoch, v.lsn, v.ordinal) < (excluded.epoch, excluded.lsn, excluded.ordinal)"
    )


def forget(number: int, key: tuple[str, str], source: str) -> str:
    return (
        f"DELETE FROM _tailrace.versions v USING {source} WHERE v.table_id = {number} AND v.key_1 = {key[0]}"
        f" AND v.key_2 = {key[1]}"
    )


def forget_to(number: int, floor: str) -> str:
    return f"DELETE FROM _tailrace.versions WHERE table_id = {number} AND (epoch, lsn, ordinal) <= {floor}"
