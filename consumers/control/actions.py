"""The control database's part for what people asked for over HTTP: which command, who, when, what came of it.

It is an audit trail and the text of a run; the processes are dashboard.actions'.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from consumers.control.database import Database, dump, is_gone, owner

FORMAT = 1
ACTIONS_KEPT = 10_000
TEXT_LIMIT = 16_000  # characters of a command's output, its last

meta = MetaData()
actions = Table(
    "actions",
    meta,
    Column("action", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("flow", Text, nullable=False),
    Column("form", Text, nullable=False),  # what was asked, equal for a dry run and what it foretells
    Column("words", Text, nullable=False),  # of the command line: JSON
    Column("dry_run", Boolean, nullable=False),
    Column("by", Text, nullable=False),
    Column("owner", Text, nullable=False),  # the process that runs it
    Column("asked_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("exit_code", Integer),
    Column("text", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A command of Tailrace, without the program and the config file."""

    kind: str
    flow: str
    form: str
    words: tuple[str, ...]
    dry_run: bool
    by: str


@dataclass(frozen=True, slots=True)
class Action:
    """`ended_us` None: it runs. `exit_code` None of one that has ended: its process was lost."""

    action: int
    kind: str
    flow: str
    form: str
    words: tuple[str, ...]
    dry_run: bool
    by: str
    asked_us: int
    ended_us: int | None
    exit_code: int | None
    text: str

    def plain(self) -> dict[str, Any]:
        names = [name for name in self.__slots__ if name not in ("form", "words")]
        return {
            **{name: getattr(self, name) for name in names},
            "command": shlex.join(["tailrace", *self.words]),
        }


class Actions:
    """Errors of the database are RetryableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, now_us: int) -> None:
        """Also ends what a process of this machine has left open when it was killed."""
        self._database.prepare("actions", FORMAT, meta)
        with self._database.begin() as connection:
            open_ = select(actions.c.action, actions.c.owner).where(actions.c.ended_us.is_(None))
            for number, worker in connection.execute(open_).all():
                if is_gone(worker, now_us, now_us):
                    ended = {"ended_us": now_us, "text": f"its process, {worker}, is gone"}
                    connection.execute(update(actions).where(actions.c.action == number).values(ended))

    def begin(self, asked: Asked, now_us: int) -> int:
        row = {name: getattr(asked, name) for name in ("kind", "flow", "form", "dry_run", "by")}
        row |= {"words": dump(list(asked.words)), "owner": owner(), "asked_us": now_us, "text": ""}
        with self._database.begin() as connection:
            made = connection.execute(insert(actions), row)
            assert made.inserted_primary_key is not None
            number = int(made.inserted_primary_key[0])
            old = (actions.c.action <= number - ACTIONS_KEPT, actions.c.ended_us.is_not(None))
            connection.execute(delete(actions).where(*old))
        return number

    def end(self, number: int, exit_code: int, text: str, now_us: int) -> None:
        values = {"exit_code": exit_code, "text": text[-TEXT_LIMIT:], "ended_us": now_us}
        with self._database.begin() as connection:
            connection.execute(update(actions).where(actions.c.action == number).values(values))

    def one(self, number: int) -> Action | None:
        with self._database.begin() as connection:
            row = connection.execute(select(actions).where(actions.c.action == number)).mappings().first()
        return None if row is None else _action(row)

    def last(self, limit: int, flow: str = "") -> list[Action]:
        """The newest first."""
        wanted = select(actions).order_by(actions.c.action.desc()).limit(limit)
        if flow:
            wanted = wanted.where(actions.c.flow == flow)
        with self._database.begin() as connection:
            return [_action(row) for row in connection.execute(wanted).mappings()]


def _action(row: Any) -> Action:
    names = [name for name in Action.__slots__ if name != "words"]
    return Action(**{name: row[name] for name in names}, words=tuple(orjson.loads(row["words"])))
