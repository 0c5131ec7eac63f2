"""Which rows the target refuses: the batch again in parts, halved until each of them is alone (H24).

One transaction with a savepoint for each part: what goes through stays for the parts after it, so that
rows meet as in the batch; what is refused is undone and halved. Nothing of it is left in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, PartitionFold, Write
from consumers.targets.base import Batch, Outcome, Refused, TableChanges, deletes_of_no_row
from consumers.targets.sql_dialect import Dialect, Refusal
from consumers.targets.sql_plans import Plan
from consumers.targets.sql_write import Plans, Work, begin, plan_of, write_floors, write_rows
from streamer.errors import BadRecordError

REFUSED_LIMIT = 100  # found in one search; the batch without them shows the next ones
UNFIT = "unfit"  # the code of a value that cannot be sent at all
_MARK = "tailrace_suspect"

log = logging.getLogger(__name__)

Entry = tuple[str, int, bytes | None, Write]  # fold's attribute, partition, key


class _Search:
    def __init__(self, connection: Connection, dialect: Dialect, plans: Plans) -> None:
        self.found: list[Refused] = []
        self._connection = connection
        self._dialect = dialect
        self._plans = plans

    def search(self, changes: TableChanges, entries: list[Entry], known: Refusal | None = None) -> bool:
        """What is refused is noted, the rest is written. `known`: they are refused, and why."""
        if len(self.found) >= REFUSED_LIMIT:
            return True
        why = known or self._try(changes, entries)
        if why is None:
            return False
        if len(entries) == 1:
            self.found.append(self._refused(changes, entries[0], why))
            return True
        middle = len(entries) // 2
        if self.search(changes, entries[:middle]):
            self.search(changes, entries[middle:])
        else:
            self.search(changes, entries[middle:], why)
        return True

    def _try(self, changes: TableChanges, entries: list[Entry]) -> Refusal | None:
        """Why they are refused; None: they are written."""
        folds: dict[int, PartitionFold] = {}
        for attribute, partition, key, write in entries:
            fold = folds.setdefault(partition, PartitionFold(partition))
            if key is None:
                getattr(fold, attribute).append(write)
            else:
                getattr(fold, attribute)[key] = write
        part = replace(changes, folds=list(folds.values()), floor=BOTTOM)
        self._connection.exec_driver_sql(f"SAVEPOINT {_MARK}")
        why: Refusal | None = None
        try:
            write_rows(self._connection, part, part.folds, self._plans, Outcome())
        except BadRecordError as error:
            why = Refusal(UNFIT, error.what, transient=False, unique=False)
        except self._dialect.errors as error:
            why = self._dialect.refusal(error)
            if why is None:
                raise
        if why is not None:
            self._connection.exec_driver_sql(f"ROLLBACK TO {_MARK}")
        self._connection.exec_driver_sql(f"RELEASE {_MARK}")
        return why

    def _refused(self, changes: TableChanges, entry: Entry, why: Refusal) -> Refused:
        _, partition, key, write = entry
        place = Place(changes.flow, changes.topic, partition)
        message = f"{plan_of(self._plans, changes).name}: {why.message}"
        return Refused(place, key, write, why.code, message, why.transient)


def find_refused(connection: Connection, dialect: Dialect, batch: Batch, plans: Plans) -> list[Refused]:
    """Empty when every row goes through now. Raises the dialect's errors for what is no row's fault."""
    search = _Search(connection, dialect, plans)
    try:
        begun = begin(connection, dialect, batch, plans, Outcome())
        write_floors(connection, dialect, begun, plans, batch)
        for changes, entries in _parts(begun.work):
            search.search(changes, entries)
    finally:
        dialect.end(connection, commit=False)
    return search.found


def pass_over(connection: Connection, dialect: Dialect, batch: Batch, plans: Plans) -> bool:
    """Take the deletes out of the batch whose keys the target's types do not hold: no row has them, and so
    nothing is refused. Whether there were any."""
    found = False
    for changes in batch.tables:
        for fold in changes.folds:
            gone = [
                key
                for key, write in fold.deletes.items()
                if not _fits(connection, dialect, plan_of(plans, changes, write.change.schema_id), write)
            ]
            for key in gone:
                del fold.deletes[key]
            if gone:
                name = plan_of(plans, changes).name
                log.warning("flow %s: %s", changes.flow, deletes_of_no_row(len(gone), name))
                found = True
    return found


def _fits(connection: Connection, dialect: Dialect, plan: Plan, write: Write) -> bool:
    """True also of a key that is not whole."""
    if any(sent.source is not None and write.row.get(sent.source) is None for sent in plan.key):
        return True
    try:
        (key,) = plan.keys([write])
        if key:
            connection.exec_driver_sql(f"SELECT {', '.join('?' * len(key))}", key)
    except BadRecordError:
        return False
    except dialect.errors as error:
        if dialect.refusal(error) is None:
            raise
        return False
    return True


def _parts(work: Work) -> Iterable[tuple[TableChanges, list[Entry]]]:
    for changes, folds in work:
        for attributes in (("deletes",), ("patches",), ("rows", "creates"), ("added", "removed")):
            entries: list[Entry] = []
            for fold in folds:
                for attribute in attributes:
                    held = getattr(fold, attribute)
                    if isinstance(held, dict):
                        entries += [(attribute, fold.partition, key, write) for key, write in held.items()]
                    else:
                        entries += [(attribute, fold.partition, None, write) for write in held]
            if entries:
                yield changes, entries
