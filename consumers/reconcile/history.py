"""The control database's part for reconcile: runs, their reports, and how far a table is that is being read.

No stream position is ever kept here. A run that was killed is found by what it was asked for, and goes on
with the tables that are not done; see `Runs.begin`. Waits of a driver are kept out of the event loop by
the caller.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from streamer.config import Config
from streamer.errors import ConfigError, FatalError, RetryableError

FORMAT = 1
RESUME_WITHIN_S = 24 * 3600  # what was compared longer ago is compared again
SILENT_AFTER_S = 120.0  # of a process on another machine: a piece takes seconds, and is noted at its end
HISTORY_RUNS = 10_000  # kept: a run an hour for a year
AUDIT_REPAIRS = 100_000  # kept, also of runs that are forgotten: an audit looks further back than a screen

meta = MetaData()
formats = Table(
    "tailrace_control",
    meta,
    Column("part", Text, primary_key=True),
    Column("format", Integer, nullable=False),
)
runs = Table(
    "reconcile_runs",
    meta,
    Column("run", Text, primary_key=True),
    Column("asked", Text, nullable=False),  # what it was asked for: JSON, equal for equal runs
    Column("names", Text, nullable=False),
    Column("owner", Text, nullable=False),  # host:pid
    Column("began_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("verdict", Text),
    Column("report", Text),
)
tables = Table(
    "reconcile_tables",
    meta,
    Column("run", Text, primary_key=True),
    Column("flow", Text, primary_key=True),
    Column("source_table", Text, primary_key=True),
    Column("form", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("progress", Text, nullable=False),
)
repairs = Table(
    "reconcile_repairs",
    meta,
    Column("backfill", Text, primary_key=True),  # the run that was asked for
    Column("run", Text, nullable=False),
    Column("flow", Text, nullable=False),
    Column("source_table", Text, nullable=False),
    Column("asked_us", BigInteger, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("report", Text, nullable=False),  # its counts, as in the report
    Column("ended_us", BigInteger),
)


@dataclass(frozen=True, slots=True)
class Saved:
    """How far a table is; `form`: of what is compared, as another one begins anew."""

    form: str
    plan: Any
    progress: Any


@dataclass(frozen=True, slots=True)
class Repair:
    """What the audit trail has of one table's repair. `asked_by`: user@host; `report`: its counts."""

    backfill: str
    flow: str
    source_table: str
    asked_us: int
    asked_by: str
    why: str
    report: dict[str, Any]


class Runs:
    """One run's notes."""

    def __init__(self, engine: Engine, run: str, *, resumed: bool) -> None:
        self._engine = engine
        self.run = run
        self.resumed = resumed

    def saved(self, flow: str, table: str) -> Saved | None:
        columns = (tables.c.form, tables.c.plan, tables.c.progress)
        with _errors(), self._engine.begin() as connection:
            row = connection.execute(select(*columns).where(*self._at(flow, table))).first()
        return None if row is None else Saved(row[0], orjson.loads(row[1]), orjson.loads(row[2]))

    def start(self, flow: str, table: str, first: Saved, now_us: int) -> None:
        row = {"run": self.run, "flow": flow, "source_table": table, "form": first.form}
        kept = {"plan": _dump(first.plan), "progress": _dump(first.progress)}
        with _errors(), self._engine.begin() as connection:
            connection.execute(delete(tables).where(*self._at(flow, table)))
            connection.execute(insert(tables), row | kept)
            self._seen(connection, now_us)

    def save(self, flow: str, table: str, progress: Any, now_us: int) -> None:
        with _errors(), self._engine.begin() as connection:
            connection.execute(update(tables).where(*self._at(flow, table)).values(progress=_dump(progress)))
            self._seen(connection, now_us)

    def end(self, report: dict[str, Any], now_us: int) -> None:
        with _errors(), self._engine.begin() as connection:
            values = {"ended_us": now_us, "verdict": report["verdict"], "report": _dump(report)}
            connection.execute(update(runs).where(runs.c.run == self.run).values(values))
            connection.execute(delete(tables).where(tables.c.run == self.run))

    def repair_asked(self, repair: Repair) -> None:
        """Durable before the log is asked; of a run that goes on, the first word stays."""
        with _errors(), self._engine.begin() as connection:
            known = select(repairs.c.backfill).where(repairs.c.backfill == repair.backfill)
            if connection.execute(known).first() is not None:
                return
            row = asdict(repair) | {"run": self.run, "report": _dump(repair.report)}
            connection.execute(insert(repairs), row)
            oldest = select(repairs.c.backfill).order_by(repairs.c.asked_us.desc()).offset(AUDIT_REPAIRS)
            forgotten = [name for (name,) in connection.execute(oldest.limit(AUDIT_REPAIRS))]
            if forgotten:
                connection.execute(delete(repairs).where(repairs.c.backfill.in_(forgotten)))

    def repair_ended(self, backfill: str, report: dict[str, Any], now_us: int) -> None:
        values = {"report": _dump(report), "ended_us": now_us}
        with _errors(), self._engine.begin() as connection:
            connection.execute(update(repairs).where(repairs.c.backfill == backfill).values(values))

    def _seen(self, connection: Any, now_us: int) -> None:
        connection.execute(update(runs).where(runs.c.run == self.run).values(seen_us=now_us))

    def _at(self, flow: str, table: str) -> tuple[Any, ...]:
        return tables.c.run == self.run, tables.c.flow == flow, tables.c.source_table == table


class History:
    """The database; made when it is not there."""

    def __init__(self, config: Config) -> None:
        self._engine = _engine(config)

    def open(self) -> None:
        with _errors(), self._engine.begin() as connection:
            meta.create_all(connection)
            found = connection.execute(select(formats.c.format).where(formats.c.part == "reconcile")).scalar()
            if found is None:
                connection.execute(insert(formats), {"part": "reconcile", "format": FORMAT})
        if found is not None and found > FORMAT:
            raise FatalError(
                f"the control database has format {found} of reconcile, this program knows {FORMAT}",
                fix="run the version of Tailrace that made it, or a newer one",
            )

    def close(self) -> None:
        self._engine.dispose()

    def begin(
        self, run: str, asked: dict[str, Any], names: Sequence[str], now_us: int, *, fresh: bool
    ) -> Runs:
        """A run anew; or the last one that was asked the same and whose process is gone, unless `fresh`."""
        text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()
        with _errors(), self._engine.begin() as connection:
            open_ = (runs.c.asked == text, runs.c.ended_us.is_(None))
            since = now_us - RESUME_WITHIN_S * 1_000_000
            found = connection.execute(
                select(runs.c.run, runs.c.owner, runs.c.seen_us)
                .where(*open_, runs.c.began_us >= since)
                .order_by(runs.c.began_us.desc())
            ).all()
            for known, owner, seen_us in [] if fresh else found:
                if not _is_gone(owner, seen_us, now_us):
                    continue
                taken = connection.execute(
                    update(runs)
                    .where(runs.c.run == known, runs.c.owner == owner)
                    .values(owner=_owner(), seen_us=now_us)
                )
                if taken.rowcount:
                    return Runs(self._engine, known, resumed=True)
            row = {"run": run, "asked": text, "names": _dump(list(names)), "owner": _owner()}
            connection.execute(insert(runs), row | {"began_us": now_us, "seen_us": now_us})
            oldest = select(runs.c.run).order_by(runs.c.began_us.desc()).offset(HISTORY_RUNS)
            forgotten = [run for (run,) in connection.execute(oldest.limit(HISTORY_RUNS))]
            for table in (tables, runs) if forgotten else ():
                connection.execute(delete(table).where(table.c.run.in_(forgotten)))
        return Runs(self._engine, run, resumed=False)

    def list(self, limit: int) -> list[dict[str, Any]]:
        """The last runs, the newest first, each with its repairs."""
        columns = (runs.c.run, runs.c.names, runs.c.began_us, runs.c.ended_us, runs.c.report)
        with _errors(), self._engine.begin() as connection:
            found = connection.execute(select(*columns).order_by(runs.c.began_us.desc()).limit(limit)).all()
            since_us = found[-1].began_us if found else 0
            asked = select(repairs).where(repairs.c.asked_us >= since_us).order_by(repairs.c.asked_us)
            audit = [_plain(row) for row in connection.execute(asked).mappings()]
        return [
            {
                "run": run,
                "names": orjson.loads(names),
                "began": _time(began_us),
                "ended": ended_us is not None,
                "report": orjson.loads(report) if report else None,
                "repairs": [repair for repair in audit if repair["run"] == run],
            }
            for run, names, began_us, ended_us, report in found
        ]


def _engine(config: Config) -> Engine:
    where = f"{config.path}: control.url"
    try:
        url = make_url(config.control.url.get_secret_value())
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            path = config.base / str(url.database)
            path.parent.mkdir(parents=True, exist_ok=True)
            url = url.set(database=str(path))
        elif url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        return create_engine(url, poolclass=NullPool)
    except (ArgumentError, ValueError, NoSuchModuleError):
        raise ConfigError(
            "it is no URL of a database (not shown: it may hold a password)",
            where=where,
            fix="write sqlite:///.tailrace/control.db, or postgresql://user:password@host:5432/database",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"its folder cannot be made: {error}", where=where, fix="name another place in control.url"
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    """What SQLAlchemy raises, as ours."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise RetryableError(
            f"the control database does not answer: {' '.join(str(cause).split())}",
            where="control.url",
            fix="see that it is there and that this user may write it",
        ) from error


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_gone(owner: str, seen_us: int, now_us: int) -> bool:
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname():
        return now_us - seen_us > SILENT_AFTER_S * 1e6
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()


def _dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def _plain(row: Any) -> dict[str, Any]:
    """A repair of the audit trail, for people and programs."""
    ended_us = row["ended_us"]
    return {
        **{name: row[name] for name in ("run", "flow", "source_table", "backfill", "asked_by", "why")},
        "asked": _time(row["asked_us"]),
        "ended": None if ended_us is None else _time(ended_us),
        "report": orjson.loads(row["report"]),
    }


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
