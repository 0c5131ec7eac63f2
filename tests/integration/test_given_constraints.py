"""Valid changes that break the target's unique and foreign keys on the way (H23)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from consumers.apply import keeping
from consumers.targets.base import RowsRefused
from consumers.testing import LogTable
from streamer.errors import TargetUnavailable
from tests.harness.feeder import Feeder, Table, applying, config_of
from tests.harness.given import Given, execute, given
from tests.harness.tiers import corners

USERS = {"id": "integer", "email": "text", "name": "text"}
COLUMNS = [("id", "integer", "number"), ("email", "text", "text"), ("name", "text", "text")]
EMAILS = "SELECT id, email FROM own.users ORDER BY id"
CHILDREN = {"id": "integer", "parent": "integer"}

# What the unique column is, and what it hangs on.
UNIQUE = {
    "nullable": "email text UNIQUE",
    "not null": "email text NOT NULL UNIQUE",
    "check": "email text UNIQUE CHECK (email LIKE '%@%' IS TRUE)",
    "nulls equal": "email text UNIQUE NULLS NOT DISTINCT",
    "deferrable": "email text UNIQUE DEFERRABLE",
    "deferred": "email text UNIQUE DEFERRABLE INITIALLY DEFERRED",
    "exclusion": "email text, EXCLUDE USING btree (email WITH =)",
    "generated": "email text, lower text GENERATED ALWAYS AS (lower(email)) STORED UNIQUE",
}


def user(n: int, email: str, name: str = "n") -> dict[str, Any]:
    return {"id": n, "email": email, "name": name}


def users(at: Given) -> LogTable:
    return at.log.table("users", USERS)


async def make_users(url: str, email: str = "email text UNIQUE", more: str = "") -> None:
    await execute(
        url, "CREATE SCHEMA own", f"CREATE TABLE own.users (id int PRIMARY KEY, {email}, name text{more})"
    )


# Inside one batch


@pytest.mark.parametrize("unique", corners(UNIQUE, "nullable", "deferrable"))
@pytest.mark.parametrize("version", corners(["columns", "side", "none"], "columns"))
async def test_h23_a_swap_in_one_batch_goes_through(target_database: str, unique: str, version: str) -> None:
    """Also of three, and with the columns of the target's own kept."""
    more = ", mine serial, words text DEFAULT 'w'"
    await make_users(target_database, UNIQUE[unique], more)
    async with given(target_database, {"version": version, "unmapped": "ignore"}) as at:
        table = users(at)
        for n, name in enumerate("abcde", 1):
            table.create(user(n, f"{name}@x"))
        await at.apply()
        await execute(target_database, "UPDATE own.users SET words = 'own ' || id, mine = id + 100")
        for n, name in enumerate("bacde", 1):  # two swap, three turn, as deferred constraints allow
            table.update(user(n, f"{name}@x"))
        table.update(user(3, "d@x"))
        table.update(user(4, "e@x"))
        table.update(user(5, "c@x"))
        await at.apply()
        assert await at.rows("SELECT id, email, mine, words FROM own.users ORDER BY id") == [
            (n, f"{name}@x", n + 100, f"own {n}") for n, name in enumerate("badec", 1)
        ]


async def test_h23_deletes_come_first(target_database: str) -> None:
    await make_users(target_database, "email text NOT NULL UNIQUE")
    async with given(target_database, partitions=4) as at:
        table = users(at)
        for n in range(1, 9):
            table.create(user(n, f"{n}@x"))
        await at.apply()
        for n in range(1, 5):
            table.create(user(n + 20, f"{n}@x"))  # before the delete in the order of the batch
            table.delete({"id": n})
        await at.apply()
        assert await at.rows(EMAILS) == [(n, f"{n}@x") for n in range(5, 9)] + [
            (n + 20, f"{n}@x") for n in range(1, 5)
        ]


async def test_h23_indexes_on_expressions_and_parts_of_the_table(target_database: str) -> None:
    await make_users(target_database, "email text")
    await execute(
        target_database,
        "CREATE UNIQUE INDEX ON own.users (lower(email))",
        "CREATE UNIQUE INDEX ON own.users (name) WHERE email IS NOT NULL",
    )
    async with given(target_database) as at:
        table = users(at)
        table.create(user(1, "A@x", "n1"))
        table.create(user(2, "b@x", "n2"))
        await at.apply()
        table.update(user(1, "B@x", "n2"))
        table.update(user(2, "a@x", "n1"))
        await at.apply()
        assert await at.rows("SELECT id, email, name FROM own.users ORDER BY id") == [
            (1, "B@x", "n2"), (2, "a@x", "n1"),
        ]  # fmt: skip


@pytest.mark.parametrize("unique", corners(["deferrable", "deferred"], "deferrable"))
async def test_h23_deferrable_unique_constraints_hold(target_database: str, unique: str) -> None:
    """They are checked by a trigger, which session_replication_role would turn off."""
    await make_users(target_database, UNIQUE[unique])
    async with given(target_database) as at:
        table = users(at)
        table.create(user(1, "a@x"))
        await at.apply()
        table.create(user(2, "a@x"))
        with pytest.raises(RowsRefused) as refused:
            await at.apply()
        (row,) = refused.value.rows
        assert (row.code, row.transient, row.key) == ("23505", True, b'{"id":2}')


async def test_h23_what_the_target_refuses_for_now_is_named(target_database: str) -> None:
    await make_users(target_database)
    async with given(target_database) as at:
        table = users(at)
        table.create(user(1, "a@x"))
        await at.apply()
        table.create(user(2, "a@x"))
        table.create(user(3, "c@x"))
        with pytest.raises(RowsRefused) as refused:
            await at.apply()
        (row,) = refused.value.rows
        assert (row.code, row.transient, row.key) == ("23505", True, b'{"id":2}')
        assert await at.rows(EMAILS) == [(1, "a@x")]


# Foreign keys

ACTIONS = ["", "ON DELETE CASCADE", "ON DELETE SET NULL"]
FAMILY = (
    "CREATE SCHEMA own",
    "CREATE TABLE own.parents (id int PRIMARY KEY, name text)",
    "CREATE TABLE own.children (id int PRIMARY KEY, parent int REFERENCES own.parents {})",
    "CREATE TABLE own.fired (n int)",
    "CREATE FUNCTION own.fire() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO own.fired VALUES (1); RETURN NULL; END $$",
    "CREATE TRIGGER fire AFTER INSERT ON own.children FOR EACH ROW EXECUTE FUNCTION own.fire()",
)


def family(at: Given) -> tuple[LogTable, LogTable]:
    parents = at.log.table("parents", {"id": "integer", "name": "text"})
    return parents, at.log.table("children", CHILDREN)


@pytest.mark.parametrize("action", corners(ACTIONS, "ON DELETE CASCADE"))
async def test_h23_a_child_before_its_parent_where_the_role_may(target_database: str, action: str) -> None:
    """Foreign keys and triggers are off, ON DELETE too."""
    await execute(target_database, *(statement.format(action) for statement in FAMILY))
    async with given(target_database) as at:
        parents, children = family(at)
        children.create({"id": 1, "parent": 7})
        await at.apply()
        parents.create({"id": 7, "name": "p"})
        await at.apply()
        parents.delete({"id": 7})
        await at.apply()
        assert await at.rows("SELECT id, parent FROM own.children") == [(1, 7)]
        assert await at.rows("SELECT count(*) FROM own.fired") == [(0,)]


@pytest.mark.parametrize("action", corners([*ACTIONS, "ON DELETE RESTRICT"], "ON DELETE SET NULL"))
async def test_h23_a_child_before_its_parent_where_the_role_may_not(
    modest_database: str, action: str
) -> None:
    """In one batch tables are ordered; across batches the child is refused for now, and no delete of a
    parent reaches its children."""
    await execute(modest_database, *(statement.format(action) for statement in FAMILY))
    async with given(modest_database) as at:
        parents, children = family(at)
        children.create({"id": 1, "parent": 7})
        parents.create({"id": 7, "name": "p"})
        await at.apply()  # the child's topic comes first
        children.create({"id": 2, "parent": 8})
        with pytest.raises(RowsRefused) as refused:
            await at.apply()
        (row,) = refused.value.rows
        assert (row.code, row.transient, row.key) == ("23503", True, b'{"id":2}')
        parents.create({"id": 8, "name": "p"})
        await at.apply()
        parents.delete({"id": 7})
        with pytest.raises(RowsRefused) as refused:
            await at.apply()
        (row,) = refused.value.rows
        assert (row.code, row.transient, row.key) == ("23503", True, b'{"id":7}')
        assert await at.rows("SELECT id, parent FROM own.children ORDER BY id") == [(1, 7), (2, 8)]
        children.delete({"id": 1})
        await at.apply()
        assert await at.rows("SELECT id, parent FROM own.children") == [(2, 8)]
        assert await at.rows("SELECT id FROM own.parents") == [(8,)]


@pytest.mark.parametrize("action", corners(["", "ON DELETE CASCADE"], ""))
async def test_h23_a_truncate_goes_from_the_children_up(modest_database: str, action: str) -> None:
    """Alone it would take rows along that may have come after it."""
    await execute(modest_database, *(statement.format(action) for statement in FAMILY))
    async with given(modest_database) as at:
        parents, children = family(at)
        parents.create({"id": 7, "name": "p"}, 100)
        children.create({"id": 1, "parent": 7}, 100, 1)
        await at.apply()
        parents.truncate(200, 0)
        with pytest.raises(TargetUnavailable) as waiting:
            await at.apply()
        assert "children" in str(waiting.value)
        assert "session_replication_role" in str(waiting.value)
        assert await at.rows("SELECT count(*) FROM own.children") == [(1,)]
        await at.target.open()
        children.truncate(200, 1)
        await at.apply()
        assert await at.rows("SELECT count(*) FROM own.parents") == [(0,)]


async def test_h23_a_swap_does_not_reach_children_where_the_role_may_not(modest_database: str) -> None:
    await make_users(modest_database, "email text UNIQUE")
    await execute(
        modest_database,
        "CREATE TABLE own.cascading (id int REFERENCES own.users ON DELETE CASCADE)",
    )
    async with given(modest_database) as at:
        table = users(at)
        table.create(user(1, "a@x"))
        table.create(user(2, "b@x"))
        await at.apply()
        await execute(modest_database, "INSERT INTO own.cascading VALUES (1), (2)")
        table.update(user(1, "b@x"))
        table.update(user(2, "a@x"))
        await at.apply()
        assert await at.rows(EMAILS) == [(1, "b@x"), (2, "a@x")]
        assert await at.rows("SELECT count(*) FROM own.cascading") == [(2,)]


# Through the whole of apply: parked, tried again


def ids(table: Table, partition: int, count: int) -> list[int]:
    """Keys of one partition."""
    return [n for n in range(200) if table.partition_of({"id": n}) == partition][:count]


@pytest.mark.parametrize(
    ("email", "more"),
    corners(
        [
            ("email text UNIQUE", ", words text DEFAULT 'w'"),
            ("email text NOT NULL UNIQUE", ", words text DEFAULT 'w'"),
            ("email text NOT NULL UNIQUE CHECK (email LIKE '_@x')", ""),
        ],
        "email text NOT NULL UNIQUE",
    ),
)
@pytest.mark.parametrize("apart", corners(["partitions", "batches", "processes"], "partitions"))
async def test_h23_a_swap_in_two_partitions_batches_or_processes(
    feeder: Feeder, target_database: str, email: str, more: str, apart: str
) -> None:
    """Each refuses the other: the row that waits gives up the value that it is to lose."""
    await make_users(target_database, email, more)
    await execute(target_database, "ALTER SCHEMA own RENAME TO mirror")
    table = await feeder.table("users", COLUMNS, partitions=2)
    one, other = ids(table, 0, 2) if apart == "batches" else ids(table, 0, 1) + ids(table, 1, 1)
    query = "SELECT id, email FROM mirror.users ORDER BY email"
    table.create(user(one, "a@x"), 100)
    table.create(user(other, "b@x"), 100, 1)
    await feeder.flush()
    # One record a batch: each comes to the target alone, whichever is first.
    config = config_of(feeder, target_database, batch="{rows: 1}")
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(applying(config))
        if apart == "processes":
            second = await stack.enter_async_context(applying(config))
            for member in (run, second):
                await member.until(lambda m=member: len(m.flow().get("partitions", ())) == 1, "a half")
        await run.rows(target_database, query, [(one, "a@x"), (other, "b@x")])
        table.update(user(one, "b@x"), 200)
        table.update(user(other, "a@x"), 200, 1)
        await feeder.flush()
        await run.rows(target_database, query, [(other, "a@x"), (one, "b@x")])
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(0,)])


async def test_h23_children_wait_for_their_parents(feeder: Feeder, modest_database: str) -> None:
    """Children, then parents, in topics that are read in any order, with foreign keys in force."""
    await execute(modest_database, *(statement.format("") for statement in FAMILY))
    await execute(
        modest_database, "ALTER SCHEMA own RENAME TO mirror", "DROP TRIGGER fire ON mirror.children"
    )
    children = await feeder.table("children", [("id", "integer", "number"), ("parent", "integer", "number")])
    parents = await feeder.table("parents", [("id", "integer", "number"), ("name", "text", "text")])
    async with applying(config_of(feeder, modest_database, batch="{rows: 7}")) as run:
        for n in range(20):
            children.create({"id": n, "parent": n % 5}, 100 + n)
        await feeder.flush()
        await run.until(lambda: run.flow().get("waiting", 0) > 0, "waiting children")
        for n in range(5):
            parents.create({"id": n, "name": "p"}, 90)
        await feeder.flush()
        await run.rows(modest_database, "SELECT count(*) FROM mirror.children", [(20,)])
        await run.rows(modest_database, "SELECT count(*) FROM _tailrace.parked", [(0,)])


async def test_h23_a_value_that_two_rows_have_in_the_end_is_a_dead_letter(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's constraint is not the source's: every partition has passed it, and it is refused still."""
    monkeypatch.setattr(keeping, "PASS_AFTER_S", 0.2)
    await make_users(target_database)
    await execute(target_database, "ALTER SCHEMA own RENAME TO mirror")
    table = await feeder.table("users", COLUMNS)
    table.create(user(1, "a@x"), 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.users", [(1,)])
        table.create(user(2, "a@x"), 200)
        table.create(user(3, "c@x"), 210)
        await feeder.flush()
        query = "SELECT convert_from(key, 'UTF8'), waiting, code FROM _tailrace.parked"
        await run.rows(target_database, query, [('{"id":2}', False, "23505")])
        query = "SELECT id, email FROM mirror.users ORDER BY id"
        await run.rows(target_database, query, [(1, "a@x"), (3, "c@x")])


# Rows that are deleted and stay


SOFT = {"delete": "soft(gone_at)", "unmapped": "ignore"}


@pytest.mark.parametrize("unique", corners(["constraint", "expression", "others"], "constraint"))
async def test_a_unique_index_that_holds_deleted_rows_is_refused(target_database: str, unique: str) -> None:
    made = f"email text{' UNIQUE' if unique == 'constraint' else ''}"
    await make_users(target_database, made, ", gone_at timestamptz")
    if unique == "expression":
        await execute(target_database, "CREATE UNIQUE INDEX lowered ON own.users (lower(email))")
    elif unique == "others":
        await execute(target_database, "CREATE UNIQUE INDEX named ON own.users (email) WHERE name <> 'x'")
    async with given(target_database, SOFT) as at:
        table = users(at)
        table.create(user(1, "a@x"))
        said = await at.refused()
        assert "holds rows that are deleted, too: under delete: soft(gone_at)" in said
        cure = said.partition("-> ")[2].removesuffix(" or write delete: apply")
        await execute(target_database, *filter(None, map(str.strip, cure.split(";"))))
        await at.apply()
        table.delete({"id": 1})
        table.create(user(2, "a@x"))
        await at.apply()
        table.delete({"id": 2})
        await at.apply()
        table.create(user(1, "a@x"))
        await at.apply()
        found = "SELECT id, email, gone_at IS NULL FROM own.users ORDER BY id"
        assert await at.rows(found) == [(1, "a@x", True), (2, "a@x", False)]
        assert await at.target.parked() == []


async def test_unique_indexes_that_no_deleted_row_stands_in(target_database: str) -> None:
    """Of live rows, of the key and more, of columns that the flow does not send."""
    await make_users(
        target_database, "email text", ", gone_at timestamptz, mine serial UNIQUE, UNIQUE (id, name)"
    )
    await execute(
        target_database,
        "CREATE UNIQUE INDEX ON own.users (lower(email)) WHERE name <> '' AND gone_at IS NULL",
    )
    async with given(target_database, SOFT) as at:
        table = users(at)
        table.create(user(1, "a@x"))
        table.delete({"id": 1})
        table.create(user(2, "a@x"))
        await at.apply()
        assert await at.rows("SELECT id FROM own.users WHERE gone_at IS NULL") == [(2,)]
