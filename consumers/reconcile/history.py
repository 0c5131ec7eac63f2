"""The control database's part for reconcile: runs, their reports, and how far a table is that is being read.

No stream position is ever kept here. A run that was killed is found by what it was asked for, and goes on
with the tables that are not done; see `Runs.begin`. Waits of a driver are kept out of the event loop by
the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, delete, insert, select, update

from consumers.control.database import Database, dump, is_gone, owner, time_text
from streamer.config import Config

FORMAT = 1
RESUME_WITHIN_S = 3600  # what was compared longer ago is compared again: a proof is as old as its oldest part
HISTORY_RUNS = 10_000  # kept: a run an hour for a year
AUDIT_REPAIRS = 100_000  # kept, also of runs that are forgotten: an audit looks further back than a screen

meta = MetaData()
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

    def __init__(self, database: Database, run: str, began_us: int, *, resumed: bool) -> None:
        self._database = database
        self.run = run
        self.began_us = began_us  # also of what was compared by a process before this one
        self.resumed = resumed

    def saved(self, flow: str, table: str) -> Saved | None:
        columns = (tables.c.form, tables.c.plan, tables.c.progress)
        with self._database.begin() as connection:
            row = connection.execute(select(*columns).where(*self._at(flow, table))).first()
        return None if row is None else Saved(row[0], orjson.loads(row[1]), orjson.loads(row[2]))

    def start(self, flow: str, table: str, first: Saved, now_us: int) -> None:
        row = {"run": self.run, "flow": flow, "source_table": table, "form": first.form}
        kept = {"plan": dump(first.plan), "progress": dump(first.progress)}
        with self._database.begin() as connection:
            connection.execute(delete(tables).where(*self._at(flow, table)))
            connection.execute(insert(tables), row | kept)
            self._seen(connection, now_us)

    def save(self, flow: str, table: str, progress: Any, now_us: int) -> None:
        with self._database.begin() as connection:
            connection.execute(update(tables).where(*self._at(flow, table)).values(progress=dump(progress)))
            self._seen(connection, now_us)

    def end(self, report: dict[str, Any], now_us: int) -> None:
        with self._database.begin() as connection:
            values = {"ended_us": now_us, "verdict": report["verdict"], "report": dump(report)}
            connection.execute(update(runs).where(runs.c.run == self.run).values(values))
            connection.execute(delete(tables).where(tables.c.run == self.run))

    def repair_asked(self, repair: Repair) -> None:
        """Durable before the log is asked; of a run that goes on, the first word stays."""
        with self._database.begin() as connection:
            known = select(repairs.c.backfill).where(repairs.c.backfill == repair.backfill)
            if connection.execute(known).first() is not None:
                return
            row = asdict(repair) | {"run": self.run, "report": dump(repair.report)}
            connection.execute(insert(repairs), row)
            oldest = select(repairs.c.backfill).order_by(repairs.c.asked_us.desc()).offset(AUDIT_REPAIRS)
            forgotten = [name for (name,) in connection.execute(oldest.limit(AUDIT_REPAIRS))]
            if forgotten:
                connection.execute(delete(repairs).where(repairs.c.backfill.in_(forgotten)))

    def repair_ended(self, backfill: str, report: dict[str, Any], now_us: int) -> None:
        values = {"report": dump(report), "ended_us": now_us}
        with self._database.begin() as connection:
            connection.execute(update(repairs).where(repairs.c.backfill == backfill).values(values))

    def _seen(self, connection: Any, now_us: int) -> None:
        connection.execute(update(runs).where(runs.c.run == self.run).values(seen_us=now_us))

    def _at(self, flow: str, table: str) -> tuple[Any, ...]:
        return tables.c.run == self.run, tables.c.flow == flow, tables.c.source_table == table


class History:
    """The database; made when it is not there."""

    def __init__(self, config: Config) -> None:
        self._database = Database(config)

    def open(self) -> None:
        self._database.prepare("reconcile", FORMAT, meta)

    def close(self) -> None:
        self._database.close()

    def begin(
        self, run: str, asked: dict[str, Any], names: Sequence[str], now_us: int, *, fresh: bool
    ) -> Runs:
        """A run anew; or the last one that was asked the same and whose process is gone, unless `fresh`."""
        text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()
        with self._database.begin() as connection:
            open_ = (runs.c.asked == text, runs.c.ended_us.is_(None))
            since = now_us - RESUME_WITHIN_S * 1_000_000
            found = connection.execute(
                select(runs.c.run, runs.c.owner, runs.c.seen_us, runs.c.began_us)
                .where(*open_, runs.c.began_us >= since)
                .order_by(runs.c.began_us.desc())
            ).all()
            for known, worker, seen_us, began_us in [] if fresh else found:
                if not is_gone(worker, seen_us, now_us):
                    continue
                taken = connection.execute(
                    update(runs)
                    .where(runs.c.run == known, runs.c.owner == worker)
                    .values(owner=owner(), seen_us=now_us)
                )
                if taken.rowcount:
                    return Runs(self._database, known, began_us, resumed=True)
            row = {"run": run, "asked": text, "names": dump(list(names)), "owner": owner()}
            connection.execute(insert(runs), row | {"began_us": now_us, "seen_us": now_us})
            oldest = select(runs.c.run).order_by(runs.c.began_us.desc()).offset(HISTORY_RUNS)
            forgotten = [run for (run,) in connection.execute(oldest.limit(HISTORY_RUNS))]
            for table in (tables, runs) if forgotten else ():
                connection.execute(delete(table).where(table.c.run.in_(forgotten)))
        return Runs(self._database, run, now_us, resumed=False)

    def list(self, limit: int) -> list[dict[str, Any]]:
        """The last runs, the newest first, each with its repairs."""
        columns = (runs.c.run, runs.c.names, runs.c.began_us, runs.c.ended_us, runs.c.report)
        with self._database.begin() as connection:
            found = connection.execute(select(*columns).order_by(runs.c.began_us.desc()).limit(limit)).all()
            since_us = found[-1].began_us if found else 0
            asked = select(repairs).where(repairs.c.asked_us >= since_us).order_by(repairs.c.asked_us)
            audit = [_plain(row) for row in connection.execute(asked).mappings()]
        return [
            {
                "run": run,
                "names": orjson.loads(names),
                "began": time_text(began_us),
                "ended": ended_us is not None,
                "report": orjson.loads(report) if report else None,
                "repairs": [repair for repair in audit if repair["run"] == run],
            }
            for run, names, began_us, ended_us, report in found
        ]


def _plain(row: Any) -> dict[str, Any]:
    """A repair of the audit trail, for people and programs."""
    ended_us = row["ended_us"]
    return {
        **{name: row[name] for name in ("run", "flow", "source_table", "backfill", "asked_by", "why")},
        "asked": time_text(row["asked_us"]),
        "ended": None if ended_us is None else time_text(ended_us),
        "report": orjson.loads(row["report"]),
    }
