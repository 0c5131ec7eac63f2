"""The open session of a sql target, as its one thread sees it: plain calls, one at a time.

Errors of the driver become those of the Target protocol here. After each error the transaction is undone;
what the session knew of tables is looked up again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, select, table

from consumers.apply.checkpoint import Checkpoint, Place, Rewind
from consumers.targets import sql_floors as floors
from consumers.targets import sql_known as known
from consumers.targets import sql_parked as parked
from consumers.targets import sql_state as state
from consumers.targets.base import (
    Batch,
    FlowError,
    Gate,
    Look,
    Outcome,
    Parked,
    RowsRefused,
    TableChanges,
    TableLost,
    Unwhole,
    Versions,
    reread_cure,
)
from consumers.targets.sql_dialect import Dialect
from consumers.targets.sql_plans import Plan, plan_for
from consumers.targets.sql_refused import find_refused, pass_over
from consumers.targets.sql_tables import fit_table
from consumers.targets.sql_write import write_batch
from streamer.config import Flow
from streamer.errors import BadRecordError, ConfigError, TargetUnavailable

ATTEMPTS = 2  # of one batch: the second with tables looked up again


class SqlSession:
    """`file`: what the identity is bound to. Made in the thread that uses it. Raises as Target.open."""

    def __init__(
        self,
        dialect: Dialect,
        file: Path,
        group: str,
        flows: Sequence[Flow],
        place: str,
        now_us: Callable[[], int],
    ) -> None:
        self._dialect = dialect
        self._flows = {flow.name: flow for flow in flows}
        self._place = place
        self._now_us = now_us
        self.has_ended = False
        self._plans: dict[tuple[str, str, str], Plan] = {}
        try:
            self._connection = dialect.connect()
        except dialect.errors as error:
            raise dialect.fault(error) from error
        try:
            self.id = state.ensure(self._connection, dialect, group, file, now_us())
        except dialect.errors as error:
            dialect.disconnect(self._connection)
            raise dialect.fault(error) from error
        except BaseException:
            dialect.disconnect(self._connection)
            raise

    def close(self) -> None:
        self._undo()
        self._dialect.disconnect(self._connection)

    def check(self) -> None:
        """Before each call. Raises TargetUnavailable when the session has lost its store."""
        try:
            self._dialect.check()
        except TargetUnavailable:
            self.has_ended = True
            raise

    def _undo(self) -> None:
        try:
            self._dialect.end(self._connection, commit=False)
        except self._dialect.errors:
            self.has_ended = True

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            yield self._connection
        except self._dialect.errors as error:
            self._undo()
            raise self._dialect.fault(error) from error

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction of its own. What is no error of the driver's is passed on."""
        try:
            self._dialect.begin(self._connection)
            yield self._connection
            self._dialect.end(self._connection, commit=True)
        except self._dialect.errors as error:
            self._undo()
            raise self._dialect.fault(error) from error
        except BaseException:
            self._undo()
            raise

    # State

    def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        wanted = set(places)
        with self._reading() as connection:
            found = state.read_stands(connection, wanted)
        missing = sorted(wanted - found.keys())
        if missing:
            with self._writing() as connection:
                there = state.read_stands(connection, missing)  # another process may have made some
                state.start(connection, self._dialect, [place for place in missing if place not in there])
                found |= state.read_stands(connection, missing)
        return {place: stand.checkpoint for place, stand in found.items()}

    def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        with self._writing() as connection:
            return state.rewind(connection, self._dialect, rewinds, who, self._now_us())

    def look(self, places: Iterable[Place]) -> Look:
        with self._reading() as connection:
            id_ = connection.execute(select(state.identity.c.id)).scalar()
            stands = state.read_stands(connection, places)
        return Look(id_ or "", {place: stand.checkpoint.next_offset for place, stand in stands.items()})

    def findings(self) -> list[str]:
        noted = state.needs_reread.c
        names = noted.flow, noted.table_name
        query = select(*names, func.count(), func.min(noted.key)).group_by(*names).order_by(*names)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            f"flow {flow}: {count} rows of {name} are not whole until they are read again from the source"
            f" (for one, key {key}): SELECT * FROM _tailrace_needs_reread in the target"
            + reread_cure(self._flows.get(flow))
            for flow, name, count, key in rows
        ]

    def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        noted = state.needs_reread.c
        wanted = noted.topic, noted.table_name, noted.key, noted.epoch, noted.lsn, noted.ordinal
        found = []
        with self._reading() as connection:
            for flow, topic in itertools.product(self._flows, topics):
                here = (noted.flow == flow) & (noted.topic == topic)
                for row in connection.execute(select(*wanted).where(here).limit(limit)):
                    found.append(Unwhole(flow, row[0], "", row[1], row[2].encode(), tuple(row[3:6])))
        return found

    def sweep(self, keep_s: float) -> None:
        now_us = self._now_us()
        with self._writing() as connection:
            state.purge(connection, now_us - round(keep_s * 1e6))
            parked.purge(connection, now_us)

    def versions(self, batch: Batch) -> Versions | None:
        plans = self._prepare(batch)
        with self._reading() as connection:
            return known.versions(connection, batch, plans)

    def parked(self, places: Iterable[Place] | None, asked: bool) -> list[Parked]:
        with self._reading() as connection:
            return parked.read(connection, places, asked=asked)

    def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        with self._writing() as connection:
            return parked.ask(connection, keys, action, who)

    def gates(self) -> list[Gate]:
        with self._reading() as connection:
            return parked.read_gates(connection)

    def hold(self, gate: Gate) -> None:
        with self._writing() as connection:
            parked.hold(connection, gate)

    def decide(self, flow: str, decision: str, who: str, up_to_us: int) -> list[Gate]:
        with self._writing() as connection:
            return parked.decide(connection, flow, decision, who, up_to_us)

    def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        since_us = self._now_us() - round(window_s * 1e6)
        with self._reading() as connection:
            return parked.recent_deletes(connection, flow, topic, since_us)

    def count_rows(self, name: str) -> int:
        with self._reading() as connection:
            if not self._dialect.columns(connection, name):
                return 0
            return int(connection.execute(select(func.count()).select_from(table(name))).scalar_one())

    def count_below(self, changes: TableChanges) -> int:
        plans = self._prepare(Batch([changes], [], {changes.record.id: changes.record}, ""))
        plan = plans[changes.flow, changes.topic, changes.record.id]
        with self._writing() as connection:  # of a temporary table
            return floors.count_below(connection, changes, plan)

    # Batches

    def apply(self, batch: Batch) -> Outcome:
        """Raises TargetUnavailable (all of it again later), RowsRefused (again without those rows) and
        FlowError (again without that flow)."""
        connection, dialect = self._connection, self._dialect
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                plans = self._prepare(batch)
                return write_batch(connection, dialect, batch, plans, self._now_us)
            except BadRecordError as error:
                self._undo()
                self._raise_refused(batch, error)
                return self.apply(batch)
            except dialect.errors as error:
                self._undo()
                refusal = dialect.refusal(error)
                if refusal is not None and last:
                    self._raise_refused(batch, error)
                    return self.apply(batch)
                if last or (refusal is None and not dialect.schema_changed(error)):
                    raise dialect.fault(error) from error
                self._plans.clear()  # the table may have changed under them
            except BaseException:
                self._undo()
                raise
        raise AssertionError("unreachable")

    def _raise_refused(self, batch: Batch, error: Exception) -> None:
        """Find the rows. Returns when deletes of no row were found instead: the batch is without them now."""
        try:
            plans = self._prepare(batch)
            if pass_over(self._connection, self._dialect, batch, plans):
                return
            refused = find_refused(self._connection, self._dialect, batch, plans)
        except self._dialect.errors as again:
            self._undo()
            raise self._dialect.fault(again) from error
        if refused:
            raise RowsRefused(refused, where=self._place) from error
        raise self._dialect.fault(error) from error

    def _prepare(self, batch: Batch) -> dict[tuple[str, str, str], Plan]:
        """Plans by (flow, topic, schema id); tables are made fit on the way, before the batch's transaction:
        not every database takes DDL back (H25)."""
        for changes in batch.tables:
            flow = self._flows[changes.flow]
            # The batch's last version comes last, so that a table is made as it is now.
            ids = {*changes.schema_ids, changes.record.id}
            for schema_id in sorted(ids, key=lambda known: known == changes.record.id):
                key = changes.flow, changes.topic, schema_id
                if key in self._plans:
                    continue
                try:
                    with self._writing() as connection:
                        record = batch.records.get(schema_id, changes.record)
                        remake = (changes.flow, changes.topic) in batch.remakes
                        fitted = fit_table(
                            connection,
                            self._dialect,
                            flow,
                            record,
                            changes.topic,
                            changes.table,
                            remake=remake,
                        )
                except (ConfigError, TableLost) as error:
                    raise FlowError(changes.flow, error) from error
                self._plans[key] = plan_for(self._dialect, flow, fitted)
        return self._plans
