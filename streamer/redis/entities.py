"""Which tables a Redis key belongs to: the compiled form of a source's `entities:`. Pure, no I/O.

A key is one entity's at most (the config refuses patterns that a key could both fit) and may feed any
number of pivots besides. What a key's state becomes is streamer.redis.rows's, a pivot's row is
streamer.redis.pivot's. The way of a changed key, for the session:

    match = entities.match(db, key)            None: nothing of ours
    match.entity, match.place()                diff entity.rows(place, state, bad) under the place
    match.feeds                                row ids of pivots; or `members` to diff, which gives them
    entities.pivot row: feed.pivot.row(db, row_id) -> .reads, .row(answers), diff under its .place
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from orjson import dumps

from streamer.changes.schema import SchemaRecord
from streamer.config.redis_entities import RedisEntity, RedisSource
from streamer.redis.encode import BadValue
from streamer.redis.patterns import KeyPattern, glob_covers
from streamer.redis.pivot import HASH, ZSET, Feed, PivotEntity
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow_records import Place

# Entities of ours, in the shadow only: members of keys that feed pivots and are no entity's rows.
MEMBERS = "_members_"
_LOSSLESS_NAMES = (None, "text", "bytes")
_LOSSLESS_VALUES = (None, "text", "float", "bytes")

FINGERPRINT_BYTES = 8


class Match(NamedTuple):
    """What a key is. `entity` None: it only feeds pivots."""

    db: int
    key: bytes
    entity: PlainEntity | None
    parts: tuple[bytes, ...]
    feeds: tuple[Feed, ...]

    def place(self) -> Place:
        """Of the entity's rows. Raises BadValue: a part that its cast does not take."""
        assert self.entity is not None
        return self.entity.place(self.db, self.key, self.parts)

    def members_place(self, members: PlainEntity) -> Place:
        """Of the rows that a feed's `members` has of this key."""
        if members is self.entity:
            return self.place()
        return members.place(self.db, self.key, (self.key,))


class _Database:
    """What is looked for in one database."""

    __slots__ = ("_entities", "_feeds", "_fixed", "_fullmatch", "_groups", "_pivot_patterns", "globs")

    def __init__(self) -> None:
        self._entities: list[PlainEntity] = []
        self._feeds: list[tuple[KeyPattern, PivotEntity]] = []
        self._fixed: dict[bytes, list[Feed]] = {}
        self._pivot_patterns: list[KeyPattern] = []
        self._groups: dict[int, tuple[PlainEntity, int]] = {}  # last group -> entity, its first part's group
        self._fullmatch = re.compile(rb"(?!)").fullmatch
        self.globs: list[bytes] = []

    @property
    def shared(self) -> list[bytes]:
        return list(self._fixed)

    def add(self, entity: PlainEntity) -> None:
        self._entities.append(entity)

    def add_pivot(self, pivot: PivotEntity, members: Mapping[str, PlainEntity]) -> None:
        patterns: dict[str, KeyPattern] = {}
        fixed: dict[tuple[bytes, str], None] = {}
        for column in pivot.columns:
            self._pivot_patterns.append(column.pattern)
            if column.fixed_key is None:
                patterns[column.pattern.text] = column.pattern
            else:
                fixed[column.fixed_key, column.kind] = None
        self._feeds += [(pattern, pivot) for pattern in patterns.values()]
        for key, kind in fixed:
            self._fixed.setdefault(key, []).append(Feed(pivot, None, members[kind]))

    def compile(self, reusable: frozenset[str]) -> None:
        """`reusable`: names of entities whose exploded rows show every change of their members."""
        expressions, groups = [], 0
        for entity in self._entities:
            groups += 1
            self._groups[groups] = entity, groups + 1
            groups += len(entity.pattern.names)
            expressions.append(b"(%b)" % entity.pattern.expression)
        if expressions:
            self._fullmatch = re.compile(b"|".join(expressions), re.DOTALL).fullmatch
        self.globs = _fewest([entity.pattern for entity in self._entities] + self._pivot_patterns)
        for key, feeds in self._fixed.items():
            found = self.match(0, key)
            own = found.entity if found is not None else None
            if own is not None and own.name in reusable:
                self._fixed[key] = [
                    feed._replace(members=own)
                    if feed.members is not None and feed.members.type == own.type
                    else feed
                    for feed in feeds
                ]

    def match(self, db: int, key: bytes) -> Match | None:
        entity: PlainEntity | None = None
        parts: tuple[bytes, ...] = ()
        found = self._fullmatch(key)
        if found is not None:
            assert found.lastindex is not None  # an entity's own group closes last
            entity, first = self._groups[found.lastindex]
            parts = found.groups()[first - 1 : first - 1 + len(entity.pattern.names)]
        feeds = self._fixed.get(key, _NO_FEEDS)
        for pattern, pivot in self._feeds:
            named = pattern.match(key)
            if named is not None:
                feeds = [*feeds, Feed(pivot, named[0], None)]
        if entity is None and not feeds:
            return None
        return Match(db, key, entity, parts, tuple(feeds))


_NO_FEEDS: list[Feed] = []


def _fewest(patterns: list[KeyPattern]) -> list[bytes]:
    """The globs, without those that another one covers: each would bring every event of a key again."""
    kept: list[KeyPattern] = []
    for pattern in patterns:
        if not any(glob_covers(other, pattern) for other in kept):
            kept = [other for other in kept if not glob_covers(pattern, other)] + [pattern]
    return [pattern.glob for pattern in kept]


class Entities:
    """`by_name` has every entity of the config; `records` their schemas."""

    def __init__(self, source: RedisSource) -> None:
        self.by_name: dict[str, PlainEntity | PivotEntity] = {}
        self._databases: dict[int, _Database] = {}
        self._members = {kind: _members_entity(source.name, kind) for kind in (ZSET, HASH)}
        self._reads: dict[str, frozenset[int]] = {}
        reusable = set()
        for name, config in source.entities.items():
            databases = source.databases_of(config)
            self._reads[name] = frozenset(databases)
            several = len(databases) > 1
            entity = (PlainEntity if config.pivot is None else PivotEntity)(
                source.name, name, config, several=several
            )
            self.by_name[name] = entity
            if isinstance(entity, PlainEntity) and _shows_members(config):
                reusable.add(name)
            for db in databases:
                database = self._databases.setdefault(db, _Database())
                if isinstance(entity, PlainEntity):
                    database.add(entity)
                else:
                    database.add_pivot(entity, self._members)
        for database in self._databases.values():
            database.compile(frozenset(reusable))

    def globs(self) -> dict[int, list[bytes]]:
        """For SCAN MATCH and PSUBSCRIBE, by database. They may overlap, and fit more keys than `match`."""
        return {db: list(database.globs) for db, database in sorted(self._databases.items())}

    def match(self, db: int, key: bytes) -> Match | None:
        database = self._databases.get(db)
        return database.match(db, key) if database is not None else None

    def shared(self) -> list[Match]:
        """The keys that all rows of a pivot come from, in every database."""
        found = [self.match(db, key) for db, database in self._databases.items() for key in database.shared]
        return [match for match in found if match is not None]

    @property
    def records(self) -> dict[str, SchemaRecord]:
        return {name: entity.record for name, entity in self.by_name.items()}

    def record(self, entity: str) -> SchemaRecord:
        return self.by_name[entity].record

    def entity(self, name: str) -> PlainEntity | PivotEntity | None:
        """One of the config's, or one of ours for members; None: there is none of that name any more."""
        if name.startswith(MEMBERS):
            return self._members.get(name.removeprefix(MEMBERS))
        return self.by_name.get(name)

    def place(self, name: str, db: int, key: bytes) -> Place | None:
        """Where the rows of a key are, by the shadow's own record; None: the config has no such rows."""
        entity = self.entity(name)
        if entity is None or (name in self._reads and db not in self._reads[name]):
            return None
        try:
            if isinstance(entity, PivotEntity):
                return entity.place(db, key)
            parts = entity.pattern.match(key)
            return entity.place(db, key, parts) if parts is not None else None
        except BadValue:
            return None

    @property
    def fingerprint(self) -> str:
        """Of all that row keys depend on: a shadow's local copy made under another one is made anew."""
        shapes = [
            [
                name,
                [[c.name, c.kind] for c in entity.record.columns if c.key],
                entity.pattern.text if isinstance(entity, PlainEntity) else "",
                isinstance(entity, PlainEntity) and entity.explodes,
                sorted(self._reads[name]),
            ]
            for name, entity in sorted(self.by_name.items())
        ]
        return blake2b(dumps(shapes), digest_size=FINGERPRINT_BYTES).hexdigest()


def _members_entity(source: str, kind: str) -> PlainEntity:
    member = "member" if kind == ZSET else "field"
    config = RedisEntity.model_validate({"pattern": "{key*}", "type": kind, "rows": {member: member}})
    return PlainEntity(source, MEMBERS + kind, config, several=True)


def _shows_members(config: RedisEntity) -> bool:
    """Whether its rows differ when a member's value does and only then, and none of them is ever refused."""
    if not config.explodes or config.redis_type not in (ZSET, HASH) or config.expires_at is not None:
        return False
    names = list(config.row_parts.values())
    return (
        config.column(names[0]).cast in _LOSSLESS_NAMES and config.column(names[1]).cast in _LOSSLESS_VALUES
    )


def types_of(source: RedisSource) -> set[str]:
    """The types of keys that the entities and pivots read."""
    types = {entity.redis_type for entity in source.entities.values() if entity.redis_type}
    for entity in source.entities.values():
        if entity.pivot is not None:
            kinds = {kind for name in entity.columns for kind in entity.column(name).keys}
            types |= {"string" if kind == "json" else kind for kind in kinds}
    return types
