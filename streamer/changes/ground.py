"""What stands under the capture of a source, as its catalogue was when the capture of it began.

Records of the positions topic, one a table, one a publication and one for each way in which changes of
a table were missed, written in a flush's transaction when they are first known and read at every start:
what is done to a table while no capture runs is found out by comparing with them. A reset begins them
anew. Judging them is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from streamer.changes.position import FORMAT, checked

Columns: TypeAlias = tuple[tuple[int, str, str], ...]  # (attnum, name, type as PostgreSQL prints it)


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


Facts: TypeAlias = TableFacts | PublicationFacts | MissedFacts


@dataclass(slots=True)
class Ground:
    """Tables by oid, publications by name."""

    tables: dict[int, TableFacts] = field(default_factory=dict)
    publications: dict[str, PublicationFacts] = field(default_factory=dict)
    missed: set[MissedFacts] = field(default_factory=set)

    def add(self, facts: Facts) -> None:
        if isinstance(facts, TableFacts):
            self.tables[facts.oid] = facts
        elif isinstance(facts, MissedFacts):
            self.missed.add(facts)
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
    if "publishes" in raw:
        return epoch, PublicationFacts(raw["oid"], raw["name"], tuple(raw["publishes"]))
    lists = {name: tuple(raw[name]) for name in ("key", "places", "partitions")}
    columns = tuple((number, name, type_) for number, name, type_ in raw["columns"])
    return epoch, TableFacts(**{**raw, **lists, "columns": columns})
