"""The JSON form of every column that keys are made of: one, for as long as a state lasts. Pure.

A row is found by its key's JSON in the state, between hops and in `out`, where the key also decides the
partition. 2 of an integer column and "2" of the numeric that it has become are two keys there, and one row of
a target; versions, which are offsets, do not say across partitions which of the two came last. So a task
notes, when its state begins, the forms of the inputs' key columns and of the derived key's columns. An event
that comes later in another form stops the processor, which a reset begins anew. What stands in the log in
another form when the state begins is left out, and said: which row of today it is, nothing tells.

    state    "_forms", NUL, topic -> {"until": the log's end then, "tables": {table: {column: form}}}

`> column` there is one of the derived key, as this input alone types it. A table that has no event yet when
the state begins is noted by its first schema record, so that all tasks note the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from consumers.processors.context import Change, Definition, Given, Version
from consumers.processors.operators.aggregate import Aggregate
from consumers.processors.operators.derive import Derive
from consumers.processors.state import Overlay, table_prefix
from streamer.changes.fitting import ALIASES
from streamer.changes.schema import SchemaRecord
from streamer.errors import FatalError

Forms = Mapping[str, str]  # column, or "> " and a derived one -> form

_FORMS: Final = table_prefix("_forms")
_DERIVED: Final = "> "
_LIMITS: Final = re.compile(r"\s*\(([^)]*)\)")
_INTEGERS: Final = frozenset(("smallint", "integer", "bigint"))
_TEXTS: Final = frozenset(("text", "character varying", "name"))
_WHATEVER_DIGITS: Final = re.compile(r"timestamp|time |interval")

log = logging.getLogger(__name__)


def form_of(type_name: str, *, trimmed: bool = False) -> str:
    """Types with one form print equal values alike. `trimmed`: as Keys and groups show a numeric."""
    bare = _LIMITS.sub("", type_name.strip())
    bare = ALIASES.get(bare, bare)
    if bare in _INTEGERS:
        return "integer"
    if bare in _TEXTS:
        return "text"
    if bare == "numeric":
        limits = _LIMITS.search(type_name)
        if limits is None or trimmed:
            return bare
        return f"numeric with {int(limits[1].partition(',')[2] or 0)} decimals"
    return bare if _WHATEVER_DIGITS.match(bare) else type_name


class KeyForms:
    """Of one processor, by what is known of its inputs' schema records by now."""

    def __init__(self, definition: Definition, given: Given) -> None:
        self.given = given
        self._definition = definition
        self._derived = definition.key() if isinstance(definition, Aggregate) else given.key
        keeps = isinstance(definition, Derive) and definition.table is None and not given.key
        self.keeps_keys = keeps and given.several  # the derived rows' keys are those of several inputs
        self._known: dict[tuple[str, str], Forms] = {}

    def records(self, topic: str) -> Mapping[str, list[SchemaRecord]]:
        """By table, the newest last; those from before a table had its key apart."""
        found: dict[str, list[SchemaRecord]] = {}
        for record in self.given.schemas.get(topic, ()):
            if record.key_columns:
                found.setdefault(table_of(record), []).append(record)
        return found

    def record(self, topic: str, schema_id: str) -> SchemaRecord | None:
        for record in self.given.schemas.get(topic, ()):
            if record.id == schema_id and record.key_columns:
                return record
        return None

    def of(self, topic: str, record: SchemaRecord) -> Forms:
        found = self._known.get((topic, record.id))
        if found is None:
            alone = replace(self.given, schemas={topic: (record,)}, doubts={})
            types = self._definition.columns(alone) or {} if self._derived else {}
            found = {column.name: form_of(column.type) for column in record.columns if column.key}
            for name in self._derived:
                if name in types:
                    found[_DERIVED + name] = form_of(types[name], trimmed=True)
            if self.keeps_keys:
                found.update({_DERIVED + name: form for name, form in tuple(found.items())})
            self._known[topic, record.id] = found
        return found

    def first(self, topic: str, records: Sequence[SchemaRecord]) -> dict[str, str]:
        """The form that each column had first."""
        found: dict[str, str] = {}
        for record in records:
            for name, form in self.of(topic, record).items():
                found.setdefault(name, form)
        return found


def _columns(derived: Collection[str]) -> str:
    return ", ".join(sorted(name.removeprefix(_DERIVED) for name in derived))


def table_of(record: SchemaRecord) -> str:
    return f"{record.schema}.{record.table}" if record.schema else record.table


class NotedForms:
    """Of one task."""

    def __init__(self, forms: KeyForms, number: int, overlay: Overlay) -> None:
        self._forms = forms
        self._number = number
        self._overlay = overlay
        self._processor = forms.given.processor
        self._until: dict[str, int] = {}
        self._tables: dict[str, dict[str, dict[str, str]]] = {}
        self._left_out: dict[str, Version] = {}
        self.fitting: set[str] = set()  # ids of schema records whose events are in the noted forms
        for topic in forms.given.inputs:
            if (stored := overlay.get(_FORMS + topic.encode())) is not None:
                raw: dict[str, Any] = orjson.loads(stored)
                self._until[topic], self._tables[topic] = raw["until"], raw["tables"]

    def begin(self, topic: str, end: int, *, fresh: bool) -> None:
        """When the task is opened. `end`: of the log. `fresh`: it has read nothing of the topic.

        Raises FatalError: the state is of other forms than its input has now.
        """
        records, forms = self._forms.records(topic), self._forms
        tables = self._tables.get(topic)
        if tables is not None:
            for table, noted in tables.items():
                if table in records:
                    self._check(topic, records[table][-1], noted)
            self._check_agreement()
            return
        if fresh:
            found = {table: dict(forms.of(topic, of[-1])) for table, of in records.items()}
        else:  # state of a version that noted nothing
            found = {table: forms.first(topic, of) for table, of in records.items()}
            for table, of in records.items():
                for record in of:
                    self._check(topic, record, found[table])
        self._until[topic], self._tables[topic] = end if fresh else 0, found
        self._store(topic)

    def fits(self, change: Change) -> bool:
        """Whether the change is to be handled; its schema record has been read, where it has one.

        Raises FatalError: it came in another form than the state is of.
        """
        topic, record = change.topic, self._forms.record(change.topic, change.schema_id)
        if record is None:
            return True  # a delete that a floor stands for, or a table that had no key
        noted = self._noted(topic, record)
        if self._other(topic, record, noted) is None:
            self.fitting.add(record.id)
            return True
        if change.offset >= self._until.get(topic, 0):
            self._check(topic, record, noted)
        self._left_out[topic] = max(change.version, self._left_out.get(topic, change.version))
        self._doubt(topic, record, noted)
        return False

    def covered(self, topic: str, floor: Version) -> None:
        """What was left out below a floor is no more in the source, or was published again."""
        if topic in self._left_out and self._left_out[topic] <= floor:
            del self._left_out[topic]
            self._forms.given.doubts.pop(self._subject(topic), None)

    def _noted(self, topic: str, record: SchemaRecord) -> Forms:
        """With the forms of columns, or tables, that the state did not know until now."""
        noted = self._tables.setdefault(topic, {}).setdefault(table_of(record), {})
        if self._forms.of(topic, record).keys() - noted.keys():
            first = self._forms.first(topic, self._forms.records(topic)[table_of(record)])
            noted.update({name: form for name, form in first.items() if name not in noted})
            self._store(topic)
        return noted

    def _check_agreement(self) -> None:
        """Raises FatalError where two inputs, or tables, give the derived rows other keys, or a column of
        them two forms."""
        seen: dict[str, tuple[str, str]] = {}
        first: tuple[str, Collection[str]] = "", ()
        noted_by = [(topic, noted) for topic, tables in self._tables.items() for noted in tables.values()]
        for topic, noted in noted_by:
            derived = {name: form for name, form in noted.items() if name.startswith(_DERIVED)}
            first = first if first[0] else (topic, derived.keys())
            if self._forms.keeps_keys and derived.keys() != first[1]:
                one, other = (_columns(names) for names in (first[1], derived))
                raise FatalError(
                    f"rows of {first[0]} have the key {one}, and rows of {topic} the key {other}",
                    where=f"processor {self._processor}",
                    fix="name the columns of the derived rows' key in the processor's `key:`; or write a"
                    " processor for each, with an `out` of its own",
                )
            for name, form in derived.items():
                other, was = seen.setdefault(name, (topic, form))
                if form != was:
                    raise FatalError(
                        f"column {name.removeprefix(_DERIVED)} of the derived rows' key is {was} in {other}"
                        f" and {form} in {topic}: one derived row would have two keys",
                        where=f"processor {self._processor}",
                        fix="let `map_`, in a processor before, make one form of them; then `tailrace reset"
                        f" {self._processor}`, which derives everything again",
                    )

    def _store(self, topic: str) -> None:
        self._check_agreement()
        raw = {"until": self._until.get(topic, 0), "tables": self._tables[topic]}
        self._overlay.begin()
        self._overlay.put(_FORMS + topic.encode(), orjson.dumps(raw))

    def _other(self, topic: str, record: SchemaRecord, noted: Forms) -> tuple[str, str, str] | None:
        """(column, its form, the noted one) of the first that differs."""
        for name, form in self._forms.of(topic, record).items():
            if noted.get(name, form) != form:
                return name, form, noted[name]
        return None

    def _check(self, topic: str, record: SchemaRecord, noted: Forms) -> None:
        if (other := self._other(topic, record, noted)) is None:
            return
        name, form, was = other
        of = f"of the key of {topic}" if not name.startswith(_DERIVED) else "of the derived rows' key"
        raise FatalError(
            f"column {name.removeprefix(_DERIVED)} {of} is {form} in its events, and its state is of"
            f" {was}: one row would have two keys",
            where=f"processor {self._processor}",
            fix=f"`tailrace reset {self._processor}`, which derives everything again; before it, where the"
            f" rows were not published again since the change, `tailrace reset {record.source}`",
        )

    def _doubt(self, topic: str, record: SchemaRecord, noted: Forms) -> None:
        doubts, subject = self._forms.given.doubts, self._subject(topic)
        if subject in doubts or (other := self._other(topic, record, noted)) is None:
            return
        name, form, now = other
        what = (
            f"rows of {topic} that did not change since their {name.removeprefix(_DERIVED)} was {form} (it is"
            f" {now}) are left out: have them published again with `tailrace reset {record.source}`"
        )
        if what not in doubts.values():
            log.warning("processor %s: %s", self._processor, what)
        doubts[subject] = what

    def _subject(self, topic: str) -> str:
        return f"{topic}[{self._number}]: forms"
