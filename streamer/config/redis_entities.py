"""`entities:` of a Redis source: which keys become which table's rows, and every mistake that shows at load.

Says what the file may hold; what it means for bytes is streamer.redis's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from streamer.changes.topics import clean
from streamer.config.base import NAME_KEY, Model, checked_name, fail, nearest
from streamer.config.redis_urls import RedisUrl
from streamer.config.units import Duration, OptionalDuration
from streamer.redis.patterns import NAME, KeyPattern, PatternError, overlap
from streamer.redis.url import SentinelUrl, read_url

DATABASE_COLUMN = "db"  # of the key, when an entity has several databases
VALUE_COLUMN = "value"
DATABASES_LIMIT = 10_000  # Redis takes more; each is a subscription and a scan of its own
COLUMN_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1
OWN_PREFIX = "_tailrace"  # columns of ours in targets
RESERVED_ENTITIES = ("message",)  # <source>.message is the topic of logical messages

# What `rows` may name, by type: the key's column first.
ROW_PARTS = {
    "hash": ("field", "value"),
    "list": ("index", "value"),
    "set": ("member",),
    "zset": ("member", "score"),
    "stream": ("id", "fields"),
}
KEY_CASTS = ("text", "int", "bytes")  # casts under which no two values become one
_CAST_KEYS = ("member", "field")

Cast = Literal[
    "text", "int", "float", "numeric", "bool", "json", "epoch_ms", "epoch_s", "timestamptz", "bytes"
]

ValueWord = Literal["raw", Cast]  # of a string as a whole: `raw` is its text, as it is


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError):
        raise fail(f"{value!r} is not a time zone", fix="write a name such as UTC or Europe/Paris") from None
    return value


def _pattern(value: str) -> str:
    try:
        KeyPattern(value)
    except PatternError as error:
        raise fail(f"the pattern {value!r} {error}", fix='write it as "user:{id}:profile"') from None
    return value


def _column_name(value: str) -> str:
    if not value or len(value.encode()) > COLUMN_BYTES or "\0" in value:
        raise fail(f"{value!r} is not a column's name", fix=f"use 1 to {COLUMN_BYTES} bytes")
    if value.startswith(OWN_PREFIX):
        raise fail(
            f"{value!r} is a name of Tailrace's own", fix=f"use one that does not begin with {OWN_PREFIX}"
        )
    return value


ColumnName = Annotated[str, AfterValidator(_column_name)]


def _casts(value: Any) -> Any:
    if isinstance(value, str):
        what = "is for types of the pattern's named parts; the pattern is `pattern`"
        raise fail(what, fix=f'write `pattern: "{value}"`, and where a part is a number: `key: {{id: int}}`')
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]


class RedisColumn(Model):
    """One column. `string`, `hash`, `zset`, `json` are the key that a pivot's column comes out of.

    `field` is a hash's field, a JSON document's member or a zset's member; of an entity that is no
    pivot, it is the column's own name unless given.
    """

    string: Pattern | None = None
    hash: Pattern | None = None
    zset: Pattern | None = None
    json_key: Pattern | None = Field(None, alias="json")
    field: str | None = None
    cast: Cast | None = None
    naive_is: Annotated[str, AfterValidator(_zone)] | None = None

    @property
    def keys(self) -> dict[str, str]:
        """{kind of key: its pattern}, of those given."""
        given = {"string": self.string, "hash": self.hash, "zset": self.zset, "json": self.json_key}
        return {kind: pattern for kind, pattern in given.items() if pattern is not None}

    @model_validator(mode="after")
    def _naive(self) -> RedisColumn:
        if self.naive_is is not None and self.cast != "timestamptz":
            raise fail(
                "`naive_is` is for cast: timestamptz", key="naive_is", fix="remove it, or add the cast"
            )
        return self


def _column_form(value: Any) -> str:
    return "cast-word" if isinstance(value, str) else "pivot-column"


class Exists(Model):
    any: tuple[str, ...] = ()
    all: tuple[str, ...] = ()


def _as_cast(value: ValueWord | None) -> Cast | None:
    return "text" if value == "raw" else value


class RedisEntity(Model):
    """Keys of a pattern, or (`pivot`) rows made out of several keys. See docs/redis.md."""

    pattern: Pattern | None = None
    type: Literal["string", "json", "hash", "list", "set", "zset", "stream"] | None = None
    key: Annotated[dict[str, Literal["text", "int", "bytes"]], BeforeValidator(_casts)] = Field(
        default_factory=dict
    )
    columns: dict[
        ColumnName,
        Annotated[
            Annotated[Cast, Tag("cast-word")] | Annotated[RedisColumn, Tag("pivot-column")],
            Discriminator(_column_form),
        ],
    ] = Field(default_factory=dict)
    rows: dict[str, ColumnName] = Field(default_factory=dict)
    value: Annotated[ValueWord | None, AfterValidator(_as_cast)] = None
    pivot: ColumnName | None = None
    exists: Exists = Exists()
    expires_at: ColumnName | None = None
    databases: tuple[Annotated[int, Field(ge=0, lt=DATABASES_LIMIT)], ...] = ()
    debounce_s: OptionalDuration = Field(None, alias="debounce", ge=0)

    @property
    def explodes(self) -> bool:
        """Whether one key gives a row a member, field, index or entry: `rows: {}` asks for them too."""
        return "rows" in self.model_fields_set or self.type == "stream"

    @property
    def redis_type(self) -> str:
        """As TYPE prints it; of a pivot nothing."""
        return "string" if self.type == "json" else self.type or ""

    @property
    def row_parts(self) -> dict[str, str]:
        """{member, score, ...: the column's name}, of exploded rows; the first is of the key."""
        parts = ROW_PARTS.get(self.redis_type, ()) if self.explodes else ()
        names = {part: self.rows.get(part, part) for part in parts}
        if self.type == "stream" and self.columns:
            del names["fields"]
        return names

    @property
    def key_parts(self) -> tuple[str, ...]:
        """Named parts, as `key:` may cast them."""
        if self.pattern is None:
            return (self.pivot,) if self.pivot is not None else ()
        return KeyPattern(self.pattern).names

    def column(self, name: str) -> RedisColumn:
        """The long form of one of `columns`; one that is not there: as it comes."""
        given = self.columns.get(name)
        if isinstance(given, RedisColumn):
            return given
        return RedisColumn(cast=given)

    @model_validator(mode="after")
    def _form(self) -> RedisEntity:
        if (self.pattern is None) == (self.pivot is None):
            raise fail("an entity has either `pattern` and `type`, or `pivot`", fix="give one of the two")
        if self.pattern is not None and self.type is None:
            raise fail("`pattern` needs `type`", key="pattern", fix="add type: hash, zset, string, ...")
        if len(set(self.databases)) != len(self.databases):
            raise fail("a database is named twice", key="databases", fix="name each once")
        if self.pivot is not None:
            _check_pivot(self)
        else:
            _check_rows(self)
            _check_columns(self)
        _check_key(self)
        _check_names(self)
        return self


def _check_pivot(entity: RedisEntity) -> None:
    for key in ("type", "rows", "value", "expires_at"):
        if key in entity.model_fields_set:
            raise fail(f"a pivot has no `{key}`", key=key, fix="remove it")
    if not entity.columns:
        raise fail("a pivot has no columns", key="columns", fix='add one: daily: {zset: "board:daily"}')
    for name, column in entity.columns.items():
        if isinstance(column, str) or len(column.keys) != 1:
            what = "a pivoted column comes out of one key"
            raise fail(what, key=("columns", name), fix="give one of string, hash, zset, json")
        ((kind, text),) = column.keys.items()
        names = KeyPattern(text).names
        place = ("columns", name, kind)
        if any(part != entity.pivot for part in names):
            what = f"{text!r} has another part than the pivot's {{{entity.pivot}}}"
            raise fail(what, key=place, fix=f"write {{{entity.pivot}}} in its place, or name the key in full")
        if kind in ("string", "json") and not names:
            fix = f"put {{{entity.pivot}}} into it"
            raise fail(f"{text!r} is one key for all rows", key=place, fix=fix)
        if kind in ("hash", "zset") and (column.field is None) == bool(names):
            word = "field" if kind == "hash" else "member"
            if names:
                fix = f"add field: the {word}'s name"
                raise fail(f"{text!r} names no {word}", key=place, fix=fix)
            what = f"the {word} of {text!r} is the row's {entity.pivot}"
            raise fail(what, key=("columns", name, "field"), fix=f"remove it, or put {{{entity.pivot}}} in")
        if kind == "string" and column.field is not None:
            raise fail(
                "a string has no fields", key=("columns", name, "field"), fix="write json in place of string"
            )
    for word, names in (("any", entity.exists.any), ("all", entity.exists.all)):
        for index, name in enumerate(names):
            if name not in entity.columns:
                fix = nearest(name, entity.columns)
                raise fail(f"there is no column {name!r}", key=("exists", word, index), fix=fix)


def _check_rows(entity: RedisEntity) -> None:
    if entity.exists.any or entity.exists.all:
        raise fail("`exists` is a pivot's", key="exists", fix="remove it: a key's row is gone with the key")
    known = ROW_PARTS.get(entity.redis_type, ())
    if entity.explodes and not known:
        raise fail(f"a {entity.type} has no `rows`", key="rows", fix="remove it: a string is one row")
    for part in entity.rows:
        if part not in known:
            raise fail(f"a {entity.type} has no {part!r}", key=("rows", part), fix=nearest(part, known))
    if entity.type == "stream" and entity.columns and "fields" in entity.rows:
        what = "`columns` takes the entry's fields apart, `rows` keeps them whole"
        raise fail(what, key=("rows", "fields"), fix="remove one of the two")


def _check_columns(entity: RedisEntity) -> None:
    if entity.value is not None and entity.redis_type != "string":
        raise fail(f"`value` is for a string, not a {entity.type}", key="value", fix="remove it")
    if entity.type == "json" and entity.value not in (None, "json"):
        raise fail("type: json has its value", key="value", fix="remove `value`, or write type: string")
    free = entity.type == "stream" or (entity.type == "hash" and not entity.explodes)
    document = entity.type == "json" or entity.value == "json"
    parts = entity.row_parts
    for name, column in entity.columns.items():
        given = entity.column(name)
        if given.keys:
            word = next(iter(given.keys))
            raise fail("another key is a pivot's", key=("columns", name, word), fix="remove it")
        if free or document:
            continue
        if name not in parts.values():
            fix = nearest(name, parts.values()) if parts else "remove it, or add `rows`"
            raise fail(f"a {entity.type} has no column {name!r}", key=("columns", name), fix=fix)
        if given.field is not None:
            raise fail("`rows` names the columns", key=("columns", name, "field"), fix="remove it")
        part = next(p for p, n in parts.items() if n == name)
        if part == "index" or (
            part in _CAST_KEYS and part == next(iter(parts)) and given.cast not in KEY_CASTS
        ):
            fix = f"write one of {', '.join(KEY_CASTS)}" if part != "index" else "remove it: it is a number"
            raise fail(f"{column} does not keep keys apart", key=("columns", name), fix=fix)


def _check_key(entity: RedisEntity) -> None:
    for part in entity.key:
        if part not in entity.key_parts:
            raise fail(f"there is no part {part!r}", key=("key", part), fix=nearest(part, entity.key_parts))
    if entity.pattern is not None and not entity.key_parts and not entity.explodes:
        what = f"{entity.pattern!r} has no named part, so its rows would have no key"
        raise fail(what, key="pattern", fix='name what differs: "user:{id}"; or add `rows`')


def column_names(entity: RedisEntity, several: bool) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """(column, where the file names it), in the table's order. `several`: databases."""
    if several:
        yield DATABASE_COLUMN, ("databases",)
    place = "pattern" if entity.pivot is None else "pivot"
    yield from ((part, (place,)) for part in entity.key_parts)
    yield from ((name, ("rows", part)) for part, name in entity.row_parts.items())
    named = [name for name in entity.columns if name not in entity.row_parts.values()]
    yield from ((name, ("columns", name)) for name in named)
    if not entity.explodes and not named and entity.pivot is None:
        yield VALUE_COLUMN, ("type",)
    if entity.expires_at is not None:
        yield entity.expires_at, ("expires_at",)


def _check_names(entity: RedisEntity, several: bool = False) -> None:
    seen = set()
    for name, place in column_names(entity, several):
        if name in seen and place[0] == "rows" and place[1] not in entity.rows and name in entity.key_parts:
            what = f"the part {name!r} has the name that a {entity.type}'s rows give to their {place[1]}"
            fix = f"give the pattern's part another name, or the column: rows: {{{place[1]}: ...}}"
            raise fail(what, key="pattern", fix=fix)
        if name in seen:
            raise fail(f"two columns are called {name!r}", key=place, fix="give one of them another name")
        if place in (("pattern",), ("pivot",)) and NAME.fullmatch(name) is None:
            raise fail(f"{name!r} cannot be a part", key=place, fix="use letters, digits and '_'")
        seen.add(name)


class RedisSource(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["redis"]
    url: RedisUrl
    notifications: Literal["manage", "check"] = "manage"
    rescan_s: Duration = Field(3600.0, alias="rescan", gt=0)
    databases: tuple[Annotated[int, Field(ge=0, lt=DATABASES_LIMIT)], ...] = ()
    entities: dict[str, RedisEntity] = Field(min_length=1)

    @property
    def default_database(self) -> int:
        """The one that the URL names."""
        url = read_url(self.url.get_secret_value())
        return (url.server if isinstance(url, SentinelUrl) else url).db

    def databases_of(self, entity: RedisEntity) -> tuple[int, ...]:
        """Where this entity's keys are looked for; more than one: `db` is a column of its key."""
        return tuple(sorted(entity.databases or self.databases or (self.default_database,)))

    @model_validator(mode="after")
    def _whole(self) -> RedisSource:
        if len(set(self.databases)) != len(self.databases):
            raise fail("a database is named twice", key="databases", fix="name each once")
        topics: dict[str, str] = {}
        for name, entity in self.entities.items():
            _check_entity_name(name, topics)
            try:
                _check_names(entity, several=len(self.databases_of(entity)) > 1)
            except ValueError as error:
                raise _below(name, error) from None
        plain = [(n, e, KeyPattern(e.pattern)) for n, e in self.entities.items() if e.pattern is not None]
        for (name, entity, pattern), (other_name, other, other_pattern) in combinations(plain, 2):
            if not set(self.databases_of(entity)) & set(self.databases_of(other)):
                continue
            if overlap(pattern, other_pattern):
                what = (
                    f"a key may fit both {name!r} ({pattern.text}) and {other_name!r} ({other_pattern.text})"
                )
                fix = "a key is one entity's: make the patterns differ, or read other `databases`"
                raise fail(what, key=("entities", other_name, "pattern"), fix=fix)
        return self


def _below(name: str, error: ValueError) -> ValueError:
    context: dict[str, Any] = getattr(error, "context", None) or {}
    if "what" not in context:
        return error
    key = context["key"]
    below = key if isinstance(key, tuple) else (key,)
    return fail(context["what"], key=("entities", name, *below), fix=context["fix"])


def _check_entity_name(name: str, topics: dict[str, str]) -> None:
    place = ("entities", name)
    try:
        checked_name(name)
    except ValueError:
        what = f"{name!r} is not an entity's name"
        raise fail(what, key=place, fix="use letters, digits, '_' and '-' (not first), at most 100") from None
    if name in RESERVED_ENTITIES or name.startswith("_"):
        what = f"the name {name!r} is Tailrace's own"
        raise fail(what, key=place, fix="use another, one that does not begin with '_'")
    other = topics.setdefault(clean(name).lower(), name)
    if other != name:
        raise fail(f"{name!r} and {other!r} differ only in case", key=place, fix="rename one")
