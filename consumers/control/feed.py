"""The control database's part for events: what is wrong, since when, until when, and who has been told.

Several processes watch beside each other. Of one thing that is wrong there is one open event, whoever saw it
first; what a channel is to be told is taken by one process, and by another when that one is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from consumers.control.database import Database
from consumers.control.lease import Lease

FORMAT = 1
EVENTS_KEPT = 10_000
OPEN_LIMIT = 1_000  # of which channels are told; more are the same trouble
TEXT_LIMIT = 2_000
CLAIM_US = 60_000_000  # who has taken a delivery so long ago, and noted no end of it, is gone
RESOLVED = "resolved"  # the last kind of message of an event

meta = MetaData()
_number = BigInteger().with_variant(Integer, "sqlite")
events = Table(
    "events",
    meta,
    Column("event", _number, primary_key=True, autoincrement=True),
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("seen_by", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    Column("resolved_us", BigInteger),
)
# Of one thing that is wrong at most one open event.
Index(
    "events_open",
    events.c.rule,
    events.c.subject,
    unique=True,
    sqlite_where=events.c.resolved_us.is_(None),
    postgresql_where=events.c.resolved_us.is_(None),
)
deliveries = Table(
    "deliveries",
    meta,
    Column("event", BigInteger, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("kind", Text, primary_key=True),  # open | repeat | resolved
    Column("number", Integer, primary_key=True),  # of the repeat, else 0
    Column("due_us", BigInteger, nullable=False),
    Column("claimed_us", BigInteger),
    Column("tries", Integer, nullable=False),
    Column("done_us", BigInteger),
    Column("problem", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that is wrong now. `rule`: of streamer.config.operations.Alarm."""

    rule: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """`resolved_us` None: it is open."""

    event: int
    rule: str
    subject: str
    text: str
    seen_by: str
    since_us: int
    resolved_us: int | None

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Delivery:
    """To be sent now, by who has taken it."""

    event: Event
    channel: str
    kind: str
    number: int
    tries: int


@dataclass(frozen=True, slots=True)
class Told:
    """What a channel was told of an event, or is to be: `count` messages while it was open, the last of them
    due at `last_us`; and whether that it is over."""

    count: int = 0
    last_us: int = 0
    resolved: bool = False


class Feed:
    """Errors of the database are RetryableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self) -> None:
        self._database.prepare("events", FORMAT, meta)

    def note(
        self, wrong: Iterable[Wrong], seen_by: str, now_us: int, lease: Lease | None = None
    ) -> tuple[list[Event], list[Event]]:
        """All that is wrong now: (events that are new, that are over). With a `lease` raises LeaseLost."""
        now = {(each.rule, each.subject): each for each in wrong}
        with self._database.begin() as connection:
            known = {(event.rule, event.subject): event for event in self._open(connection)}
            over = [event for key, event in known.items() if key not in now]
            fresh = [each for key, each in now.items() if key not in known]
            texts = {known[key].event: now[key].text[:TEXT_LIMIT] for key in known.keys() & now.keys()}
            changed = [event for event in known.values() if texts.get(event.event, event.text) != event.text]
            if lease is not None and (over or fresh or changed):
                lease.guard(connection)
            for event in over:
                self._change(connection, event, resolved_us=now_us)
            for event in changed:
                self._change(connection, event, text=texts[event.event])
            begun = [self._begin(connection, each, seen_by, now_us) for each in fresh]
            if begun:
                self._forget(connection)
        return [event for event in begun if event is not None], over

    def last(self, limit: int = 100, *, open_only: bool = False) -> list[Event]:
        """The newest first."""
        wanted = select(events).order_by(events.c.event.desc()).limit(limit)
        if open_only:
            wanted = wanted.where(events.c.resolved_us.is_(None))
        with self._database.begin() as connection:
            return [_event(row) for row in connection.execute(wanted).mappings()]

    def to_tell(self, resolved_since_us: int) -> list[tuple[Event, dict[str, Told]]]:
        """The events that are open, and those that were over since then; by channel what it was told."""
        recent = or_(events.c.resolved_us.is_(None), events.c.resolved_us >= resolved_since_us)
        wanted = select(events).where(recent).order_by(events.c.event.desc()).limit(OPEN_LIMIT)
        told: dict[int, dict[str, Told]] = {}
        with self._database.begin() as connection:
            found = [_event(row) for row in connection.execute(wanted).mappings()]
            its = deliveries.c.event.in_([event.event for event in found])
            for row in connection.execute(select(deliveries).where(its)).mappings():
                channels = told.setdefault(row["event"], {})
                before = channels.get(row["channel"], Told())
                channels[row["channel"]] = _and(before, row)
        return [(event, told.get(event.event, {})) for event in found]

    # What channels are to be told

    def owe(self, wanted: Iterable[tuple[int, str, str, int]], now_us: int) -> None:
        """(event, channel, kind: open, repeat, resolved; number of the repeat), each once, whoever asks."""
        with self._database.begin() as connection:
            for event, channel, kind, number in wanted:
                row = {"event": event, "channel": channel, "kind": kind, "number": number}
                first = {"due_us": now_us, "tries": 0, "problem": ""}
                try:
                    with connection.begin_nested():
                        connection.execute(insert(deliveries), row | first)
                except IntegrityError:
                    continue

    def take(self, room: Mapping[str, int], now_us: int) -> list[Delivery]:
        """Deliveries that are due, now this process's to send: of each channel as many as it has room for.
        What a channel is told of one event comes in order, one after the other."""
        found = []
        with self._database.begin() as connection:
            for channel, limit in room.items():
                both = select(deliveries, events).join(events, events.c.event == deliveries.c.event)
                due = both.where(_due(channel, now_us)).order_by(deliveries.c.due_us).limit(limit)
                for row in connection.execute(due).mappings().all():
                    tries = row["tries"] + 1  # who takes it raises these, so one alone does
                    mine = update(deliveries).where(*_at(row), deliveries.c.tries == row["tries"])
                    if connection.execute(mine.values(claimed_us=now_us, tries=tries)).rowcount == 1:
                        found.append(Delivery(_event(row), channel, row["kind"], row["number"], tries))
        return found

    def sent(self, delivery: Delivery, now_us: int) -> None:
        self._over(delivery, {"done_us": now_us, "problem": ""})

    def failed(self, delivery: Delivery, problem: str, again_us: int | None, now_us: int) -> None:
        """`again_us` None: it is given up."""
        later = {"claimed_us": None, "due_us": again_us} if again_us is not None else {"done_us": now_us}
        self._over(delivery, {"problem": problem[:TEXT_LIMIT], **later})

    def problems(self, limit: int = 20) -> list[dict[str, Any]]:
        """Deliveries that have failed last, the newest first."""
        wanted = select(deliveries).where(deliveries.c.problem != "").order_by(deliveries.c.event.desc())
        with self._database.begin() as connection:
            return [dict(row) for row in connection.execute(wanted.limit(limit)).mappings()]

    def _over(self, delivery: Delivery, values: dict[str, Any]) -> None:
        row = {"event": delivery.event.event, "channel": delivery.channel}
        row |= {"kind": delivery.kind, "number": delivery.number}
        with self._database.begin() as connection:
            connection.execute(update(deliveries).where(*_at(row)).values(values))

    def _open(self, connection: Connection) -> list[Event]:
        rows = connection.execute(select(events).where(events.c.resolved_us.is_(None))).mappings()
        return [_event(row) for row in rows]

    def _change(self, connection: Connection, event: Event, **values: Any) -> None:
        open_ = (events.c.event == event.event, events.c.resolved_us.is_(None))
        connection.execute(update(events).where(*open_).values(values))

    def _begin(self, connection: Connection, wrong: Wrong, seen_by: str, now_us: int) -> Event | None:
        row = {"rule": wrong.rule, "subject": wrong.subject, "text": wrong.text[:TEXT_LIMIT]}
        try:
            with connection.begin_nested():
                made = connection.execute(insert(events), row | {"seen_by": seen_by, "since_us": now_us})
        except IntegrityError:  # another process was first
            return None
        assert made.inserted_primary_key is not None
        number = int(made.inserted_primary_key[0])
        return Event(number, wrong.rule, wrong.subject, row["text"], seen_by, now_us, None)

    def _forget(self, connection: Connection) -> None:
        oldest = select(events.c.event).order_by(events.c.event.desc()).offset(EVENTS_KEPT).limit(1)
        last = connection.execute(oldest).scalar()
        if last is not None:
            old = and_(events.c.event <= last, events.c.resolved_us.is_not(None))
            gone = select(events.c.event).where(old)
            connection.execute(delete(deliveries).where(deliveries.c.event.in_(gone)))
            connection.execute(delete(events).where(old))


def _due(channel: str, now_us: int) -> Any:
    earlier = deliveries.alias()
    before = exists().where(
        earlier.c.event == deliveries.c.event,
        earlier.c.channel == channel,
        earlier.c.done_us.is_(None),
        earlier.c.kind != RESOLVED,
        or_(earlier.c.number < deliveries.c.number, deliveries.c.kind == RESOLVED),
    )
    return and_(
        deliveries.c.channel == channel,
        deliveries.c.done_us.is_(None),
        deliveries.c.due_us <= now_us,
        or_(deliveries.c.claimed_us.is_(None), deliveries.c.claimed_us < now_us - CLAIM_US),
        ~before,
    )


def _and(before: Told, row: Any) -> Told:
    if row["kind"] == RESOLVED:
        return Told(before.count, before.last_us, resolved=True)
    return Told(before.count + 1, max(before.last_us, row["due_us"]), before.resolved)


def _at(row: Any) -> tuple[Any, ...]:
    return tuple(deliveries.c[name] == row[name] for name in ("event", "channel", "kind", "number"))


def _event(row: Any) -> Event:
    return Event(
        *(row[name] for name in ("event", "rule", "subject", "text", "seen_by", "since_us", "resolved_us"))
    )
