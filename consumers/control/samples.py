"""The control database's part for the past of each flow: lag, latency and rate of the last seven days.

One process writes, the one that holds the lease: a transaction a step for all flows. Rows lie in the order of
time, so that a step touches few pages of the file; who reads one flow looks up its steps one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from consumers.control.database import Database
from consumers.control.downsample import TIERS, Sample, Tier, columns, steps, tier_of
from consumers.control.lease import Lease

FORMAT = 1
POINTS_LIMIT = 2_000  # of one answer: more than a screen has columns
FINEST = TIERS[0]

meta = MetaData()
flows = Table(
    "lag_flows",
    meta,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("flow", Text, nullable=False, unique=True),
    Column("seen_s", BigInteger, nullable=False),
)
samples = Table(
    "lag_samples",
    meta,
    Column("step_s", Integer, primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, primary_key=True, autoincrement=False),
    Column("flow", Integer, primary_key=True, autoincrement=False),
    Column("lag_median_ms", BigInteger),
    Column("lag_worst_ms", BigInteger),
    Column("p50_us", BigInteger),
    Column("p99_us", BigInteger),
    Column("rate", Float),
    Column("records", BigInteger),
    Column("state", Text, nullable=False),
    sqlite_with_rowid=False,
)
_FIGURES = tuple(samples.c[name] for name in Sample.__slots__)


class Samples:
    """Errors of the database are RetryableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self) -> None:
        self._database.prepare("samples", FORMAT, meta)

    def write(self, lease: Lease, step: Mapping[str, Sample], at_s: int) -> None:
        """One finest step: by flow. Also makes the coarser steps that have ended. Raises LeaseLost."""
        end_s = at_s + FINEST.step_s
        with self._database.begin() as connection:
            lease.guard(connection)
            numbers = self._numbers(connection, step, at_s)
            _drop(connection, FINEST, at_s, end_s)
            _put(connection, FINEST, ((numbers[flow], sample) for flow, sample in step.items()))
            for fine, coarse in pairwise(TIERS):
                self._coarsen(connection, fine, coarse, end_s)

    def history(self, flow: str, since_us: int, points: int, now_us: int) -> dict[str, Any]:
        """downsample.columns; of a flow that is not known here, gaps."""
        now_s = now_us // 1_000_000
        since_s = max(since_us // 1_000_000, now_s - TIERS[-1].kept_s)
        with self._database.begin() as connection:
            number = connection.execute(select(flows.c.number).where(flows.c.flow == flow)).scalar()
            found = [] if number is None else _read(connection, number, since_s, now_s)
        return columns(found, since_s, now_s, min(points, POINTS_LIMIT))

    def worst_lags(self, since_us: int, now_us: int) -> dict[str, Any]:
        """Of all flows, of the last minutes: `step_s`, `at_us`, `flows` by name, lists of seconds as long as
        `at_us`, oldest first; a gap is null."""
        step_s, now_s = FINEST.step_s, now_us // 1_000_000
        first_s = max(since_us // 1_000_000, now_s - FINEST.kept_s) // step_s * step_s
        places = {at_s: place for place, at_s in enumerate(range(first_s, now_s + 1, step_s))}
        query = select(flows.c.flow, samples.c.at_s, samples.c.lag_worst_ms).join(
            flows, flows.c.number == samples.c.flow
        )
        by_flow: dict[str, list[float | None]] = defaultdict(lambda: [None] * len(places))
        with self._database.begin() as connection:
            at = (samples.c.step_s == step_s, samples.c.at_s.in_(list(places)))
            for flow, at_s, lag_ms in connection.execute(query.where(*at)):
                by_flow[flow][places[at_s]] = None if lag_ms is None else lag_ms / 1000
        return {"step_s": step_s, "at_us": [at_s * 1_000_000 for at_s in places], "flows": dict(by_flow)}

    def _numbers(self, connection: Connection, names: Iterable[str], at_s: int) -> dict[str, int]:
        known = {row.flow: row.number for row in connection.execute(select(flows.c.flow, flows.c.number))}
        fresh = [{"flow": name, "seen_s": at_s} for name in names if name not in known]
        if fresh:
            connection.execute(insert(flows), fresh)
            return self._numbers(connection, names, at_s)
        if (at_s + FINEST.step_s) % TIERS[
            -1
        ].step_s == 0:  # a flow that is gone is forgotten with its samples
            connection.execute(update(flows).where(flows.c.flow.in_(list(names))).values(seen_s=at_s))
            connection.execute(delete(flows).where(flows.c.seen_s < at_s - 2 * TIERS[-1].kept_s))
        return known

    def _coarsen(self, connection: Connection, fine: Tier, coarse: Tier, end_s: int) -> None:
        """What has ended since the last coarse step; one that began before this process did, too."""
        closed_s = end_s // coarse.step_s * coarse.step_s
        _drop(connection, coarse, closed_s, end_s)
        newest = select(func.max(samples.c.at_s)).where(samples.c.step_s == coarse.step_s)
        last_s = connection.execute(newest).scalar()
        from_s = closed_s - fine.kept_s if last_s is None else last_s + coarse.step_s
        if from_s >= closed_s:
            return
        span = (samples.c.step_s == fine.step_s, samples.c.at_s >= from_s, samples.c.at_s < closed_s)
        by_flow: dict[int, list[Sample]] = defaultdict(list)
        for number, *figures in connection.execute(
            select(samples.c.flow, *_FIGURES).where(*span).order_by(samples.c.at_s)
        ):
            by_flow[number].append(Sample(*figures))
        _put(
            connection,
            coarse,
            ((number, sample) for number, its in by_flow.items() for sample in steps(its, coarse.step_s)),
        )


def _drop(connection: Connection, tier: Tier, begin_s: int, end_s: int) -> None:
    """What is too old, and what a clock that ran ahead has left."""
    its = samples.c.step_s == tier.step_s
    connection.execute(delete(samples).where(its, samples.c.at_s < end_s - tier.kept_s))
    connection.execute(delete(samples).where(its, samples.c.at_s >= begin_s))


def _put(connection: Connection, tier: Tier, found: Iterable[tuple[int, Sample]]) -> None:
    rows = [
        {"step_s": tier.step_s, "flow": number, **{name: getattr(sample, name) for name in Sample.__slots__}}
        for number, sample in found
    ]
    if rows:
        connection.execute(insert(samples), rows)


def _read(connection: Connection, number: int, since_s: int, now_s: int) -> list[Sample]:
    """The tier that reaches so far back, and of what it has not yet the finer ones."""
    found: list[Sample] = []
    for tier in reversed(TIERS[: TIERS.index(tier_of(since_s, now_s)) + 1]):
        first_s = max(since_s, now_s - tier.kept_s) // tier.step_s * tier.step_s
        moments = list(range(first_s, now_s + 1, tier.step_s))
        at = (samples.c.step_s == tier.step_s, samples.c.at_s.in_(moments), samples.c.flow == number)
        rows = connection.execute(select(*_FIGURES).where(*at).order_by(samples.c.at_s))
        its = [Sample(*row) for row in rows]
        if its:
            found += its
            since_s = its[-1].at_s + tier.step_s
    return found
