"""What stands under the capture of a source, as its catalogue was when the capture of it began.

Records of the positions topic, one a table, one a partition that holds rows, one a publication, one for each
way in which changes of a table were missed or values of its rows changed without any, written in a flush's
transaction when they are first known and read at every start: what is done to a table while no capture runs
is found out by comparing with them. A reset begins them anew. Judging them is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from streamer.changes.position import FORMAT, checked

Columns: TypeAlias = tuple[tuple[int, str, str], ...]  # (attnum, name, type as PostgreSQL prints it)
# (attnum, part, text): what the text of stored values comes from beside the rows. A part is a label of an
# enum ("e" and its oid), an attribute of a composite type ("a", its relation's oid, "." and its number), or
# DEFAULT.
Parts: TypeAlias = tuple[tuple[int, str, str], ...]
DEFAULT = "default"  # of a column that was added with one: rows of before have it without being written


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One published table. `places`: its entries in our publications; `partitions`: below it (oids)."""

    oid: int
    name: str  # schema.table
    identity: str
    key: tuple[str, ...]
    places: tuple[int, ...]
    partitions: tuple[int, ...]
    columns: Columns
    parts: Parts = ()

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "table": self.oid})


@dataclass(frozen=True, slots=True)
class PublicationFacts:
    """One publication. `publishes`: insert, update, delete, truncate, and whether via the root."""

    oid: int
    name: str
    publishes: tuple[bool, ...]

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "publication": self.name})


@dataclass(frozen=True, slots=True, order=True)
class MissedFacts:
    """Changes of a table (schema.table) that are not in its topic.

    `instead`: the other name that it had meanwhile; "" when the config left the table out; the same name when
    the table has no key and was published later than the epoch began, perhaps with rows.
    """

    name: str
    instead: str = ""

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "missed": self.name, "instead": self.instead})


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """One partition that holds rows. `root`: the published table, `file`: of its rows.

    `lsn`: by when that file was seen; `emptied_lsn`: by when rows were seen to be gone that the stream has
    not told of, `attached_us`: when it was seen to have come with rows; 0 when that is not so, or is mended.
    """

    oid: int
    name: str  # schema.table
    root: int
    file: int
    lsn: int = 0
    emptied_lsn: int = 0
    attached_us: int = 0

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "leaf": self.oid})


@dataclass(frozen=True, slots=True)
class TruncateFacts:
    """The last truncate of a partitioned table that the stream has shown. `lsn`: its commit's."""

    root: int
    lsn: int

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "truncated": self.root})


@dataclass(frozen=True, slots=True)
class StaleFacts:
    """Rows of a table have other values than were sent. `what`: how; `since_us`: when that was seen, 0 when
    it is mended. `keys`: of rows that a backfill would not bring under the keys that they had."""

    stale: int  # the table's oid
    what: str
    since_us: int
    keys: bool = False

    def key_of(self, source: str) -> bytes:
        return orjson.dumps({"source": source, "stale": self.stale, "what": self.what})


Facts: TypeAlias = TableFacts | PublicationFacts | MissedFacts | LeafFacts | TruncateFacts | StaleFacts
# Of their records' keys.
KINDS = frozenset({"table", "publication", "missed", "leaf", "truncated", "stale"})


@dataclass(slots=True)
class Ground:
    """Tables and partitions by oid, publications by name. `truncated`: root -> commit LSN.

    `lsn`: of one look at the catalogue, by when its partitions were read; 0 when it has none.
    """

    tables: dict[int, TableFacts] = field(default_factory=dict)
    publications: dict[str, PublicationFacts] = field(default_factory=dict)
    missed: set[MissedFacts] = field(default_factory=set)
    leaves: dict[int, LeafFacts] = field(default_factory=dict)
    truncated: dict[int, int] = field(default_factory=dict)
    stale: dict[tuple[int, str], StaleFacts] = field(default_factory=dict)
    lsn: int = 0

    def add(self, facts: Facts) -> None:
        if isinstance(facts, TableFacts):
            self.tables[facts.oid] = facts
        elif isinstance(facts, MissedFacts):
            self.missed.add(facts)
        elif isinstance(facts, LeafFacts):
            self.leaves[facts.oid] = facts
        elif isinstance(facts, TruncateFacts):
            self.truncated[facts.root] = facts.lsn
        elif isinstance(facts, StaleFacts):
            self.stale[facts.stale, facts.what] = facts
        else:
            self.publications[facts.name] = facts


def dump(facts: Facts, epoch: int) -> bytes:
    return orjson.dumps({"format": FORMAT, "epoch": epoch, **orjson.loads(orjson.dumps(facts))})


def load(value: bytes) -> tuple[int, Facts]:
    """(epoch, facts). Raises FatalError for a format of a newer program."""
    raw: dict[str, Any] = checked(value)
    epoch: int = raw.pop("epoch")
    if "instead" in raw:
        return epoch, MissedFacts(raw["name"], raw["instead"])
    if "stale" in raw:
        return epoch, StaleFacts(**raw)
    if "publishes" in raw:
        return epoch, PublicationFacts(raw["oid"], raw["name"], tuple(raw["publishes"]))
    if "file" in raw:
        return epoch, LeafFacts(**raw)
    if "root" in raw:
        return epoch, TruncateFacts(**raw)
    lists = {name: tuple(raw[name]) for name in ("key", "places", "partitions")}
    columns = tuple((number, name, type_) for number, name, type_ in raw["columns"])
    parts = tuple((number, part, text) for number, part, text in raw.get("parts", ()))
    return epoch, TableFacts(**{**raw, **lists, "columns": columns, "parts": parts})
