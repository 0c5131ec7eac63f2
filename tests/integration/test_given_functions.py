"""What policies and triggers of the target say of a row is that row's fault; the rest flows (H24)."""

from __future__ import annotations

import pytest

from consumers.targets.base import RowsRefused
from streamer.errors import TargetUnavailable
from tests.harness.given import execute, given, people, person, rows

_TABLE = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra text)"
# What a row's data makes a trigger do -> SQLSTATE
_FAULTS = {
    "EXECUTE 'SELECT nocolumn'": "42703",
    "EXECUTE 'SELECT * FROM own.nothing'": "42P01",
    "EXECUTE 'SELECT nofunction()'": "42883",
    "new.nofield := 1": "42703",
    "PERFORM (SELECT x FROM generate_series(1, 2) x)": "21000",
    "RAISE 'not you' USING ERRCODE = 'insufficient_privilege'": "42501",
    "RAISE 'never' USING ERRCODE = 'TR001'": "TR001",
}


async def test_h24_rows_that_a_policy_refuses_are_found(modest_database: str) -> None:
    await execute(
        modest_database,
        "CREATE SCHEMA own",
        _TABLE,
        "ALTER TABLE own.people ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY p ON own.people USING (true) WITH CHECK (extra <> 'no')",
    )
    async with given(modest_database) as at:
        for n in range(1, 9):
            people(at).create(person(n, extra="no" if n in (3, 6) else "x"))
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        refused = caught.value.rows
        assert sorted(row.key or b"" for row in refused) == [b'{"id":3}', b'{"id":6}']
        assert {(row.code, row.transient) for row in refused} == {("42501", False)}
        assert "own.people: new row violates row-level security policy" in refused[0].message


async def test_h24_a_missing_privilege_is_no_rows_fault(target_database: str, modest_database: str) -> None:
    """Also in a trigger's function: what is granted heals it."""
    await execute(modest_database, "CREATE SCHEMA own")
    await execute(target_database, "CREATE TABLE own.log (id int)")
    await execute(
        modest_database,
        _TABLE,
        "CREATE FUNCTION own.log() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO own.log VALUES (new.id); RETURN new; END'",
        "CREATE TRIGGER log BEFORE INSERT ON own.people FOR EACH ROW EXECUTE FUNCTION own.log()",
    )
    async with given(modest_database) as at:
        people(at).create(person(1))
        with pytest.raises(TargetUnavailable) as caught:
            await at.apply()
        assert "permission denied for table log" in str(caught.value)
        await execute(target_database, "GRANT INSERT ON own.log TO public")
        await at.apply()
        assert await rows(target_database, "SELECT id FROM own.log") == [(1,)]


async def test_h24_what_a_trigger_makes_of_a_row_is_the_rows_fault(target_database: str) -> None:
    cases = " ".join(f"WHEN {n} THEN {does};" for n, does in enumerate(_FAULTS, 1))
    await execute(
        target_database,
        "CREATE SCHEMA own",
        _TABLE,
        "CREATE FUNCTION own.odd() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN CASE new.id {cases} ELSE NULL; END CASE; RETURN new; END$$",
        "CREATE TRIGGER odd BEFORE INSERT ON own.people FOR EACH ROW EXECUTE FUNCTION own.odd()",
        "ALTER TABLE own.people ENABLE ALWAYS TRIGGER odd",
    )
    async with given(target_database) as at:
        for n in range(len(_FAULTS) + 2):
            people(at).create(person(n))
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        refused = {row.key: row for row in caught.value.rows}
        assert [refused[b'{"id":%d}' % n].code for n in range(1, len(_FAULTS) + 1)] == [*_FAULTS.values()]
        assert len(refused) == len(_FAULTS)
        for row in refused.values():
            assert row.message.startswith("own.people: ")
            assert "PL/pgSQL function own.odd() line 1" in row.message
            assert row.message.endswith("; flow 'mirror')")
