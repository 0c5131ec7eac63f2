"""The last comparison of each whole flow that came to its end, in the control database: its proof.

Also since when the source's present epoch is known here, as a proof of rows that were copied before it is
none. Waits of a driver are kept out of the event loop by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Float, MetaData, Table, Text, delete, insert, select

from consumers.control.database import Database
from consumers.reconcile.report import DRIFT, EQUAL, REPAIRED, TableReport, worst
from streamer.config import Config

PART, FORMAT = "proofs", 1
PROVED = (EQUAL, DRIFT, REPAIRED)  # verdicts of a comparison that came to its end

meta = MetaData()
proofs = Table(
    "reconcile_proofs",
    meta,
    Column("flow", Text, primary_key=True),
    Column("run", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("drift", Float, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("began_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
)
epochs = Table(
    "reconcile_epochs",
    meta,
    Column("flow", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Proof:
    """`verdict`: the worst of the flow's tables; `drift`: the largest share of one; `rows`: the source's."""

    flow: str
    run: str
    verdict: str
    drift: float
    rows: int
    began_us: int
    ended_us: int

    def plain(self) -> dict[str, Any]:
        raw = asdict(self)
        del raw["flow"]
        return raw


def proofs_of(tables: Iterable[TableReport], run: str, began_us: int, ended_us: int) -> list[Proof]:
    """Of a run that has compared whole flows. A flow that was not compared to its end has none, and none that
    makes no copy."""
    by_flow: dict[str, list[TableReport]] = {}
    for table in tables:
        by_flow.setdefault(table.flow, []).append(table)
    found = []
    for flow, its in by_flow.items():
        verdict = worst(table.verdict for table in its)
        if verdict not in PROVED or all(table.meant for table in its):
            continue
        drift, rows = max(table.drift for table in its), sum(table.source_rows for table in its)
        found.append(Proof(flow, run, verdict, drift, rows, began_us, ended_us))
    return found


class Proofs:
    """Made when it is not there. Raises ConfigError, FatalError, RetryableError."""

    def __init__(self, config: Config, database: Database | None = None) -> None:
        self._database = database or Database(config)

    def open(self) -> None:
        self._database.prepare(PART, FORMAT, meta)

    def close(self) -> None:
        self._database.close()

    def note(self, found: Iterable[Proof]) -> None:
        with self._database.begin() as connection:
            for proof in found:
                connection.execute(delete(proofs).where(proofs.c.flow == proof.flow))
                connection.execute(insert(proofs), asdict(proof))

    def known(self) -> dict[str, Proof]:
        """By flow."""
        with self._database.begin() as connection:
            return {row["flow"]: Proof(**row) for row in connection.execute(select(proofs)).mappings()}

    def seen_us(self, flow: str, epoch: int, now_us: int) -> int:
        """Since when this epoch of the flow's source is known here: since now, when it was not."""
        with self._database.begin() as connection:
            known = select(epochs.c.seen_us).where(epochs.c.flow == flow, epochs.c.epoch == epoch)
            found: int | None = connection.execute(known).scalar()
            if found is None:
                connection.execute(delete(epochs).where(epochs.c.flow == flow))
                connection.execute(insert(epochs), {"flow": flow, "epoch": epoch, "seen_us": now_us})
        return now_us if found is None else found
