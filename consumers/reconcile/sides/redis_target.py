"""A flow's table in a Redis target: its rows as hashes, JSON texts, or members of zsets and sets.

What is compared is what the layout holds (docs/reconcile.md): a row's key is read off the name of its key
and member, its columns off the fields or the document, a score off the zset. Keys that the flow's templates
do not give are somebody else's. A row's stamp is its version, kept beside the rows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from struct import pack
from typing import Any

from hiredis import ReplyError
from orjson import JSONDecodeError, loads

from consumers.reconcile.canonical import canonical_of
from consumers.reconcile.dialects.sqlite import STRANGE
from consumers.reconcile.keys import event_key
from consumers.reconcile.mapping import Compared, constant_text
from consumers.reconcile.sides.base import Key, Row
from consumers.reconcile.sides.redis_nodes import AT_ONCE, Asked, Nodes, of_target
from consumers.reconcile.sides.spooled import Found, Texts
from consumers.targets.redis_layout import Named, Plan, Unfit, text_of
from consumers.targets.redis_slots import names_in, slot_of
from streamer.changes.schema import SchemaRecord
from streamer.config.key_template import KeyTemplate
from streamer.errors import BadRecordError
from streamer.redis.connection import RedisConnection
from streamer.redis.patterns import glob_escape
from streamer.redis.replies import Command
from streamer.redis.reread import BIG_ELEMENTS, KeyChanged, Reread

# Kinds that an event has as JSON values, and Redis as their JSON; any other is a text as it is, also one that
# holds JSON.
_JSON_KINDS = frozenset({"number", "bool", "bit1", "float", "vector"})
_PAGE = AT_ONCE


@dataclass(frozen=True, slots=True)
class _Column:
    """A compared column: its target's name, and what of it is read."""

    name: str
    text: Callable[[Any], str]  # what the layout holds, not null -> canonical text
    key: bool


class TargetReader:
    """`plan`: what apply writes by. `kinds`: of the compared key's columns, in their order."""

    def __init__(
        self, nodes: Nodes, plan: Plan, record: SchemaRecord, compared: Compared, kinds: Mapping[str, str]
    ) -> None:
        self._nodes = nodes
        self._plan = plan
        self._layout = plan.layout
        self._record = record
        self._kinds = kinds
        self._soft = compared.soft
        self._names = [pair.name for pair in compared.pairs]
        self._columns = [
            _Column(
                pair.target_name,
                _constant if pair.name in compared.constants else stored_text(plan.layout, kind),
                key,
            )
            for pair in compared.pairs
            for kind, key in [(pair.target.form.kind, pair.name in compared.key)]
        ]
        self._key_at = [at for at, column in enumerate(self._columns) if column.key]
        self._key_names = [pair.target_name for pair in compared.key_pairs]
        self._template, self._member = plan.templates
        self._constants = {c.name: text_of(c.value) for c in plan.columns.columns if c.column is None}
        self.read_bytes = 0

    @property
    def place(self) -> str:
        return f"{self._plan.names.schema}.{self._plan.names.table} in target redis {self._nodes.place}"

    def names(self) -> Sequence[str]:
        return self._names

    # All rows

    async def all_rows(self) -> AsyncGenerator[list[Found], None]:
        if not self._template.names:
            line = await self._nodes.line_of(self._template.prefix)
            async with aclosing(self._of_keys(line, [self._template.prefix.encode()])) as batches:
                async for found in batches:
                    yield found
            return
        glob = b"*".join(glob_escape(text.encode()) for text in self._template.literals)
        async with aclosing(self._nodes.walk(glob)) as walk:
            async for line, keys in walk:
                async with aclosing(self._of_keys(line, keys)) as batches:
                    async for found in batches:
                        yield found

    async def _of_keys(
        self, line: RedisConnection, keys: Sequence[bytes]
    ) -> AsyncGenerator[list[Found], None]:
        named = {key: values for key in keys if (values := self._values(self._template, key)) is not None}
        if self._member is not None:
            async with aclosing(self._members(line, named)) as batches:
                async for found in batches:
                    yield found
            return
        wanted = list(named)
        for at in range(0, len(wanted), _PAGE):
            some = wanted[at : at + _PAGE]
            replies = await self._nodes.on(line, [self._read(key) for key in some])
            rows = (self._found(named[key], reply) for key, reply in zip(some, replies, strict=True))
            yield [row for row in rows if row is not None]

    def _values(self, template: KeyTemplate, name: bytes) -> dict[str, str] | None:
        """What stands for each column in a name; None: it is not the flow's."""
        try:
            found = template.values(name.decode())
        except UnicodeDecodeError:
            return None
        if found is None:
            return None
        values = dict(zip(template.names, found, strict=True))
        ours = all(self._constants[name] == text for name, text in values.items() if name in self._constants)
        return values if ours else None

    def _read(self, key: bytes) -> Command:
        if self._layout == "json":
            return ("GET", key)
        soft = [self._soft] if self._soft is not None else []
        return ("HMGET", key, *(column.name for column in self._columns), *self._key_names, *soft)

    def _found(self, named: Mapping[str, str], reply: Any) -> Found | None:
        key = self._key(named)
        texts = self._texts(reply, key) if key is not None else None
        return (key, texts) if key is not None and texts is not None else None

    def _key(self, named: Mapping[str, str]) -> Key | None:
        """By the names of a row's key and member; None: what stands there is no value of the column's."""
        found = []
        for name, kind in zip(self._key_names, self._kinds.values(), strict=True):
            text = _kept(kind, named[name])
            if text.startswith(STRANGE):
                return None
            found.append(text)
        return tuple(found)

    def _texts(self, reply: Any, key: Key) -> Texts | None:
        """Of a hash or a document under the key's name; None: there is no row of ours."""
        if reply is None or isinstance(reply, ReplyError):
            return None
        if self._layout == "json":
            self.read_bytes += len(reply)
            return self._of_document(reply, key)
        self.read_bytes += sum(len(part) for part in reply if part is not None)
        width = len(self._columns)
        keys, soft = reply[width : width + len(self._key_names)], reply[width + len(self._key_names) :]
        if None in keys or any(value is not None for value in soft):
            return None
        texts = [
            None if part is None else column.text(_decoded(part))
            for column, part in zip(self._columns, reply, strict=False)
        ]
        return self._at(key, texts)

    def _of_document(self, text: bytes, key: Key) -> Texts | None:
        try:
            document = loads(text)
        except JSONDecodeError:
            return None
        if type(document) is not dict or any(document.get(name) is None for name in self._key_names):
            return None
        if self._soft is not None and document.get(self._soft) is not None:
            return None
        values = [document.get(column.name) for column in self._columns]
        texts = [
            None if value is None else column.text(value)
            for column, value in zip(self._columns, values, strict=True)
        ]
        return self._at(key, texts)

    def _at(self, key: Key, texts: list[str | None]) -> Texts:
        """A row that stands under another row's name has that one's key, and is seen to be another."""
        for at, text in zip(self._key_at, key, strict=True):
            if texts[at] != text:
                texts[at] = f"{STRANGE}{texts[at]}"
        return tuple(texts)

    # Members

    async def _members(
        self, line: RedisConnection, keys: Mapping[bytes, Mapping[str, str]]
    ) -> AsyncGenerator[list[Found], None]:
        """Small sets many at once, a large one by itself in steps."""
        kind, count = ("zset", "ZCARD") if self._layout == "zset" else ("set", "SCARD")
        wanted = list(keys)
        for at in range(0, len(wanted), _PAGE):
            some = wanted[at : at + _PAGE]
            sizes = await self._nodes.on(line, [(count, key) for key in some])
            small, room = list[bytes](), BIG_ELEMENTS
            for key, size in zip(some, sizes, strict=True):
                if isinstance(size, ReplyError):
                    continue
                if size > BIG_ELEMENTS:
                    async with aclosing(self._large(line, key, kind, keys[key])) as steps:
                        async for found in steps:
                            yield found
                    continue
                if size > room:
                    yield await self._small(line, small, keys)
                    small, room = [], BIG_ELEMENTS
                small.append(key)
                room -= size
            yield await self._small(line, small, keys)

    async def _small(
        self, line: RedisConnection, keys: Sequence[bytes], named: Mapping[bytes, Mapping[str, str]]
    ) -> list[Found]:
        read = ("ZRANGE", "SMEMBERS")[self._layout == "set"]
        more: tuple[Any, ...] = (0, -1, "WITHSCORES") if self._layout == "zset" else ()
        replies = await self._nodes.on(line, [(read, key, *more) for key in keys])
        found: list[Found] = []
        for key, reply in zip(keys, replies, strict=True):
            if not isinstance(reply, ReplyError):
                members = dict(reply) if self._layout == "zset" else dict.fromkeys(reply)
                found += self._rows_of(named[key], members)
        return found

    async def _large(
        self, line: RedisConnection, key: bytes, kind: str, named: Mapping[str, str]
    ) -> AsyncGenerator[list[Found], None]:
        with suppress(KeyChanged), of_target():
            async for step in Reread(line).scan_members(self._nodes.db, key, kind):
                yield self._rows_of(named, step.members)

    def _rows_of(self, named: Mapping[str, str], members: Mapping[bytes, float | None]) -> list[Found]:
        assert self._member is not None
        found: list[Found] = []
        for member, score in members.items():
            self.read_bytes += len(member)
            values = self._values(self._member, member)
            if values is None:
                continue
            all_values = {**named, **values}
            key = self._key(all_values)
            if key is not None:
                found.append((key, self._member_texts(all_values, score)))
        return found

    def _member_texts(self, named: Mapping[str, str], score: float | None) -> Texts:
        """The score is the one column that is not in the names."""
        return tuple(
            [
                _kept(self._kind_of(column.name), named[column.name]) if column.key else _score(score)
                for column in self._columns
            ]
        )

    def _kind_of(self, target_name: str) -> str:
        return dict(zip(self._key_names, self._kinds.values(), strict=True))[target_name]

    # Rows of some keys

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        wanted: dict[Key, Named] = {key: named for key in keys if (named := self._named(key)) is not None}
        asked: list[Asked] = []
        for named in wanted.values():
            asked += [Asked(named.key, self._read_one(named)), Asked(named.key, self._version(named))]
        replies = await self._nodes.ask(asked)
        found: dict[Key, Row] = {}
        for at, key in enumerate(wanted):
            texts = self._texts_of(key, replies[2 * at])
            if texts is not None:
                version = replies[2 * at + 1]
                stamp = version.hex() if isinstance(version, bytes) else ""
                found[key] = Row(texts, stamp)
        return found

    def _named(self, key: Key) -> Named | None:
        values = event_key(key, self._kinds, self._record)
        if values is None:
            return None
        row = dict(zip(self._record.key_columns, values, strict=True))
        try:
            return self._plan.named(row, b"")
        except Unfit:
            return None

    def _read_one(self, named: Named) -> Command:
        if self._layout == "zset":
            return ("ZSCORE", named.key, named.member)
        if self._layout == "set":
            return ("SISMEMBER", named.key, named.member)
        return self._read(named.key.encode())

    def _version(self, named: Named) -> Command:
        names = self._plan.names
        if self._nodes.in_cluster:
            names = names_in(names, slot_of(named.key))
        return ("HGET", names.rows, named.field)

    def _texts_of(self, key: Key, reply: Any) -> Texts | None:
        if self._member is None:
            return self._texts(reply, key)
        if self._layout == "zset":
            return self._of_key(key, reply) if isinstance(reply, float) else None
        return self._of_key(key, None) if reply == 1 else None

    def _of_key(self, key: Key, score: float | None) -> Texts:
        texts = iter(key)
        return tuple([next(texts) if column.key else _score(score) for column in self._columns])


def _score(score: float | None) -> str | None:
    return None if score is None else "\\x" + pack(">d", score + 0.0).hex()  # of one zero


def _decoded(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return f"{STRANGE}bytes:{part.hex()}"


def stored_text(layout: str, kind: str) -> Callable[[Any], str]:
    """Of a value that is not null, as a field has it or a document that was read."""
    if layout == "json":
        return lambda value: _of_value(kind, value)
    return lambda text: _kept(kind, text)


def _constant(value: Any) -> str:
    """As the flow's own is said."""
    text = constant_text(value)
    return STRANGE + repr(value) if text is None else text


def _of_value(kind: str, value: Any) -> str:
    try:
        return canonical_of(kind)(value)
    except BadRecordError:
        return f"{STRANGE}{type(value).__name__}:{value!r}"


def _kept(kind: str, text: str) -> str:
    """A field's text, or a part of a name, in the one spelling that apply gives a value."""
    if text.startswith(STRANGE):
        return text
    value: Any = text
    if kind in _JSON_KINDS or kind.startswith("array"):
        try:
            read = loads(text)
        except JSONDecodeError:
            read = text
        if text_of(read) != text if type(read) is not str else read != text:
            return f"{STRANGE}text:{text!r}"
        value = read
    return _of_value(kind, value)
