"""Backfills: who wants which rows of a source published again, and how far that is. No I/O.

Records of the compacted topic `<name>.__backfills`, which has one partition; keys are canonical JSON:

    {"source","run","part":"request"}          what is wanted; written once, by who asks
    {"source","run","part":"keys","number":n}  the keys of a keyed run, in parts, written before the request
    {"source","run","part":"wish"}             run, pause or cancel; written by people
    {"source","run","part":"progress"}         written by the source's capture alone, in the Kafka
                                               transaction of the rows that it tells of (H10)

A tombstone of the request makes the run unknown. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Any, TypeAlias

import orjson

from streamer.changes.names import spelt
from streamer.errors import FatalError

FORMAT = 1
KEYS_PART_BYTES = 500_000  # half of Kafka's default message, so that a part never meets the limit
KEEP_DONE_US = 7 * 86_400_000_000  # a run that is over is looked at within a week, or not at all

Key: TypeAlias = tuple[Any, ...]  # a row's key as an envelope holds it, in the order of the key's columns


class State(StrEnum):
    """Where a run is. `waiting` also before its capture has seen it."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        return self in _OVER


_OVER = frozenset({State.CANCELLED, State.DONE, State.FAILED})


class Wanted(StrEnum):
    """What a person wants of a run that was asked for."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


# Why a run was asked for; a repair is `repair:<run of the reconcile>`.
MANUAL = "manual"
NEW_TABLE = "new_table"
LATE_FLOW = "late_flow"
NEEDS_REREAD = "needs_reread"
REPAIR = "repair:"
# The reason of a run that its capture has ended: nobody had asked for it, and nobody can read the table.
TABLE_GONE = "its table is gone"


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted. A Postgres source has `schema` and `table`, a Redis source `entity`.

    `where`: SQL of the source. `keyed`: only the keys of the `key_parts` records beside it, and with
    `deletes` a key that is not in the source becomes a delete event. `rate`: rows a second at most.
    `compared_lsn`: of a repair, where the comparison of the whole table began by which its keys were found.
    """

    run: str
    source: str
    schema: str = ""
    table: str = ""
    entity: str = ""
    where: str | None = None
    keyed: bool = False
    key_parts: int = 0
    deletes: bool = False
    rate: int | None = None
    by: str = ""
    why: str = MANUAL
    asked_us: int = 0
    compared_lsn: int = 0

    @property
    def place(self) -> str:
        """schema.table, or the entity."""
        return self.entity or spelt(self.schema, self.table)

    def key(self) -> bytes:
        return part_key(self.source, self.run, "request")

    def dump(self) -> bytes:
        return _dump(self)

    @classmethod
    def load(cls, value: bytes) -> Request:
        return cls(**_checked(value, cls))


@dataclass(frozen=True, slots=True)
class Wish:
    """The last word of a person about a run."""

    wish: Wanted
    by: str
    us: int

    def key(self, source: str, run: str) -> bytes:
        return part_key(source, run, "wish")

    def dump(self) -> bytes:
        return _dump(self)

    @classmethod
    def load(cls, value: bytes) -> Wish:
        raw = _checked(value, cls)
        return cls(**{**raw, "wish": Wanted(raw["wish"])})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    `cursor`: the key of the last row done, each value as the source prints it, in the order of the
    index that is walked; of a keyed run how many of its keys are done, as one number. `owed`: keys
    left out of a chunk, because a newer event of them has not all of their row: read next (H7).
    `dropped`: rows that were not published, because an event is newer. `reread`: chunks read again.
    `floor_lsn`: the commit LSN of the last close mark, which is the version of its rows.
    """

    state: State
    reason: str = ""
    cursor: tuple[str, ...] | None = None
    owed: tuple[Key, ...] = ()
    chunks: int = 0
    rows: int = 0
    deletes: int = 0
    estimated_rows: int | None = None
    dropped: int = 0
    reread: int = 0
    floor_lsn: int = 0
    began_us: int = 0
    updated_us: int = 0
    ended_us: int | None = None

    def key(self, source: str, run: str) -> bytes:
        return part_key(source, run, "progress")

    def dump(self) -> bytes:
        return _dump(self)

    @classmethod
    def load(cls, value: bytes) -> Progress:
        raw = _checked(value, cls)
        cursor = raw.get("cursor")
        return cls(
            **{
                **raw,
                "state": State(raw["state"]),
                "cursor": None if cursor is None else tuple(cursor),
                "owed": tuple(tuple(key) for key in raw.get("owed", ())),
            }
        )


@dataclass(slots=True)
class Run:
    """All records of one run."""

    source: str
    run: str
    request: Request | None = None
    wish: Wish | None = None
    progress: Progress | None = None
    parts: dict[int, list[Key]] = field(default_factory=dict)  # of a keyed run, by their number

    @property
    def state(self) -> State:
        return self.progress.state if self.progress is not None else State.WAITING

    @property
    def wanted(self) -> Wanted:
        return self.wish.wish if self.wish is not None else Wanted.RUN

    @property
    def by(self) -> str:
        """Who has the last word: `by NAME`; empty when nobody has said anything."""
        return f"by {self.wish.by}" if self.wish is not None and self.wish.by else ""

    @property
    def unasked(self) -> bool:
        """Whether it came by itself, for a table as it was found, and no person has said anything of it."""
        return (
            self.request is not None and self.request.why in (NEW_TABLE, NEEDS_REREAD) and self.wish is None
        )

    @property
    def whole(self) -> bool:
        """Whether all of what was asked for is there."""
        return self.request is not None and len(self.parts) >= self.request.key_parts

    def keys(self) -> list[Key]:
        """The keys of a keyed run, in the order in which they were given."""
        return [key for number in sorted(self.parts) for key in self.parts[number]]

    def part_keys(self) -> list[bytes]:
        """The keys of all records of the run: what a tombstone needs."""
        names = ["request", "wish", "progress"]
        found = [part_key(self.source, self.run, name) for name in names]
        return found + [keys_key(self.source, self.run, number) for number in sorted(self.parts)]


class Runs:
    """The runs of the topic as its records say, fed in their order. `source`: only those of one."""

    def __init__(self, source: str | None = None) -> None:
        self._source = source
        self.by_run: dict[tuple[str, str], Run] = {}

    def take(self, key: bytes | None, value: bytes | None) -> Run | None:
        """One record -> the run that it belongs to; None when it is none of ours."""
        if key is None:
            return None
        names: dict[str, Any] = orjson.loads(key)
        source, run, part = names["source"], names["run"], names["part"]
        if self._source is not None and source != self._source:
            return None
        known = self.by_run.setdefault((source, run), Run(source, run))
        if part == "request":
            known.request = None if value is None else Request.load(value)
        elif part == "wish":
            known.wish = None if value is None else Wish.load(value)
        elif part == "progress":
            known.progress = None if value is None else Progress.load(value)
        elif part == "keys":
            if value is None:
                known.parts.pop(names["number"], None)
            else:
                known.parts[names["number"]] = load_keys(value)
        if known.request is None and known.wish is None and known.progress is None and not known.parts:
            del self.by_run[source, run]
        return known

    def asked(self) -> list[Run]:
        """Those whose request is there, the oldest first."""
        found = [run for run in self.by_run.values() if run.request is not None]
        return sorted(found, key=lambda run: (run.request.asked_us if run.request else 0, run.run))


def part_key(source: str, run: str, part: str) -> bytes:
    return orjson.dumps({"source": source, "run": run, "part": part})


def keys_key(source: str, run: str, number: int) -> bytes:
    return orjson.dumps({"source": source, "run": run, "part": "keys", "number": number})


def key_parts(keys: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The values of the records that hold a keyed run's keys, each below KEYS_PART_BYTES."""
    part: list[bytes] = []
    size = 0
    for key in keys:
        text = orjson.dumps(list(key))
        if part and size + len(text) >= KEYS_PART_BYTES:
            yield _keys_value(part)
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    if part:
        yield _keys_value(part)


def load_keys(value: bytes) -> list[Key]:
    raw = _read(value)
    return [tuple(key) for key in raw["keys"]]


def manual_run(now_us: int, random_bits: int) -> str:
    """A run id that sorts by time: 20261122T115639-1f3a."""
    moment = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}-{random_bits & 0xFFFF:04x}"


def table_run(source: str, schema: str, table: str, epoch: int) -> str:
    """Of a table made later that has rows already: one run an epoch, whoever asks."""
    return f"table:{source}.{spelt(schema, table)}:{epoch}"


def flow_run(target: str, flow: str, table: str, epoch: int) -> str:
    """Of a flow added when its topic no longer holds everything. `table`: schema.table, or the entity."""
    return f"flow:{target}.{flow}:{table}:{epoch}"


def reread_run(target: str, table: str, epoch: int, keys: Iterable[Sequence[Any]]) -> str:
    """Of rows that a target cannot make whole: the same keys make the same run."""
    digest = blake2b(digest_size=8)
    for text in sorted(orjson.dumps(list(key)) for key in keys):
        digest.update(text)
    return f"reread:{target}:{table}:{epoch}:{digest.hexdigest()}"


def split_parts(request: Request, keys: Iterable[Sequence[Any]]) -> tuple[Request, list[bytes]]:
    """A keyed request that says how many parts its keys have, and the parts' values."""
    parts = list(key_parts(keys))
    return replace(request, keyed=True, key_parts=len(parts)), parts


def _keys_value(part: list[bytes]) -> bytes:
    return b'{"format":%d,"keys":[%b]}' % (FORMAT, b",".join(part))


def _dump(value: Any) -> bytes:
    return orjson.dumps({"format": FORMAT, **orjson.loads(orjson.dumps(value))})


def _read(value: bytes) -> dict[str, Any]:
    raw: dict[str, Any] = orjson.loads(value)
    version = raw.pop("format", None)
    if version != FORMAT:
        raise FatalError(
            f"the topic of backfills has format {version}, this program reads {FORMAT}",
            fix="run the version of Tailrace that wrote it, or a newer one",
        )
    return raw


def _checked(value: bytes, kind: type[Any]) -> dict[str, Any]:
    """Fields that this program does not know are left out: they are of a later minor version."""
    raw = _read(value)
    return {name: raw[name] for name in kind.__dataclass_fields__ if name in raw}
