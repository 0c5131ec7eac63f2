"""`sources:`: where changes come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from streamer.config.base import NAME_KEY, Model, OptionalPostgresUrl, PostgresUrl, fail
from streamer.config.patterns import fits_parts
from streamer.config.redis_entities import RedisSource
from streamer.config.units import Duration, OptionalDuration, Rate, Size

OWN_PREFIX = "_tailrace"  # tables and schemas of ours are never captured
IDENTIFIER_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1
READERS_LIMIT = 64  # connections of a snapshot; more only queue at the source's disk


def _identifier(value: str) -> str:
    if not value or len(value.encode()) > IDENTIFIER_BYTES:
        raise fail("is not a PostgreSQL name", fix=f"use 1 to {IDENTIFIER_BYTES} bytes")
    return value


def _slot_name(value: str) -> str:
    if not value or len(value) > IDENTIFIER_BYTES or value.strip("abcdefghijklmnopqrstuvwxyz0123456789_"):
        fix = f"use lower-case letters, digits and '_', at most {IDENTIFIER_BYTES}"
        raise fail("is not a slot name", fix=fix)
    return value


class TableRule(Model):
    """What is taken of a table; all empty: everything."""

    exclude: tuple[str, ...] = ()
    mask: dict[str, str] = Field(default_factory=dict)
    where: str | None = None


def _rule_form(value: Any) -> str:
    return "exclude-word" if isinstance(value, str) else "rule"


Rule = Annotated[
    Annotated[Literal["exclude"], Tag("exclude-word")] | Annotated[TableRule, Tag("rule")],
    Discriminator(_rule_form),
]


class Slot(Model):
    name: Annotated[str, AfterValidator(_slot_name)]
    wal_warn_bytes: Size = Field(5 * 2**30, alias="wal_warn")
    wal_stop_bytes: Size = Field(20 * 2**30, alias="wal_stop")
    on_stop: Literal["alert", "drop_and_resync"] = "alert"

    @model_validator(mode="after")
    def _order(self) -> Slot:
        if self.wal_stop_bytes < self.wal_warn_bytes:
            raise fail(
                "wal_stop is below wal_warn", key="wal_stop", fix="the warning comes first: raise wal_stop"
            )
        return self


class Publication(Model):
    name: Annotated[str, AfterValidator(_identifier)]
    manage: bool = True


class Snapshot(Model):
    mode: Literal["initial", "never", "only"] = "initial"
    readers: int = Field(1, ge=1, le=READERS_LIMIT)
    rate: Rate = 0.0


class PostgresSource(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["postgres"]
    url: PostgresUrl
    primary_url: OptionalPostgresUrl = None
    tables: dict[str, Rule]
    slot: Slot
    publication: Publication
    snapshot: Snapshot = Snapshot()
    origin: Literal["any", "none"] = "any"
    heartbeat_s: Duration = Field(10.0, alias="heartbeat", gt=0)

    @field_validator("tables", mode="after")
    @classmethod
    def _tables(cls, tables: dict[str, Rule]) -> dict[str, Rule]:
        for pattern in tables:
            schema, dot, table = pattern.partition(".")
            if not (schema and dot and table):
                what = f"{pattern!r} names no schema"
                raise fail(what, key=pattern, fix=f'write "public.{pattern.strip(".")}" (schema.table)')
        if all(rule == "exclude" for rule in tables.values()):
            raise fail("no table is captured", fix='name at least one, for example "public.*": {}')
        return tables

    def pattern_for(self, schema: str, table: str) -> str | None:
        """The first key of `tables` that fits; None: none does, or the table is the server's or ours."""
        if schema.startswith((OWN_PREFIX, "pg_")) or schema == "information_schema":
            return None
        if table.startswith(OWN_PREFIX):
            return None
        return next((p for p in self.tables if fits_parts(p, (schema, table))), None)

    def rule_for(self, schema: str, table: str) -> TableRule | None:
        """The first rule that fits; None: this table is not captured."""
        pattern = self.pattern_for(schema, table)
        rule = self.tables[pattern] if pattern is not None else "exclude"
        return None if isinstance(rule, str) else rule


class Since(Model):
    param: str
    field: str
    overlap_s: Duration = Field(0.0, alias="overlap")


class PullEntity(Model):
    get: str | None = None
    for_each: str | None = None
    rows: str | None = None
    next: str | None = None
    key: tuple[str, ...] = Field(min_length=1)
    since: Since | None = None
    sweep_s: OptionalDuration = Field(None, alias="sweep")
    options: dict[str, Any] = Field({}, repr=False)  # what a user's own connector reads


class PullSource(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["pull"]
    connector: str
    options: dict[str, Any] = Field({}, repr=False)  # may hold tokens
    entities: dict[str, PullEntity] = Field(min_length=1)


class QuerySource(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["query"]
    on: str
    key: tuple[str, ...] = Field(min_length=1)
    sql: str
    dirty: dict[str, str | dict[str, str]] = Field(min_length=1)


Source = Annotated[PostgresSource | RedisSource | PullSource | QuerySource, Field(discriminator="kind")]
