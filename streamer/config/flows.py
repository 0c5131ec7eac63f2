"""`targets:` and `flows:`: where changes go."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from streamer.config.base import NAME_KEY, Model, PostgresUrl, Url, fail
from streamer.config.patterns import clean_pattern, fits_parts, is_pattern
from streamer.config.units import Duration, OptionalDuration, OptionalShare, Size

_SOFT = re.compile(r"apply|ignore|soft\([^()]+\)")
_CONFLICT = re.compile(r"source|target|(?:newest|greatest)\([^()]+\)")


class Batch(Model):
    rows: int = Field(10_000, ge=1, le=1_000_000)
    bytes: Size = Field(16 * 2**20, ge=1024)
    wait_s: Duration = Field(0.005, alias="wait", le=60)


class PostgresTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["postgres"]
    url: PostgresUrl
    batch: Batch = Batch()
    origin: str | None = None


class SqlTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["sql"]
    url: Url
    batch: Batch = Batch()


class RedisTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["redis"]
    url: Url
    batch: Batch = Batch()


class VectorTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["pgvector"]
    url: PostgresUrl
    batch: Batch = Batch()


Target = Annotated[PostgresTarget | SqlTarget | RedisTarget | VectorTarget, Field(discriminator="kind")]


class ColumnRule(Model):
    """`to`: renamed; `value`: a constant for a target column; `cast`: the target's type."""

    to: str | None = None
    value: Any = None
    cast: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ColumnRule:
        if "value" in self.model_fields_set and (self.to is not None or self.cast is not None):
            raise fail(
                "`value` stands alone: the key is the target's column", key="value", fix="remove to and cast"
            )
        return self


def _column_form(value: Any) -> str:
    return "column-rule" if isinstance(value, dict) else "column-name"


Columns = dict[
    str,
    Annotated[
        Annotated[str, Tag("column-name")] | Annotated[ColumnRule, Tag("column-rule")],
        Discriminator(_column_form),
    ],
]


class Chunk(Model):
    tokens: int = Field(400, ge=1)
    overlap: int = Field(0, ge=0)


def _delete(value: str) -> str:
    if not _SOFT.fullmatch(value):
        raise fail("is not a way to delete", fix="write apply, soft(column) or ignore")
    return value


def _conflict(value: str) -> str:
    if not _CONFLICT.fullmatch(value):
        raise fail("is not a conflict rule", fix="write source, target, newest(column) or greatest(column)")
    return value


class Flow(Model):
    name: str = Field(alias=NAME_KEY)
    source_pattern: str = Field(alias="from", min_length=1)
    to: str = Field(min_length=1)
    columns: Columns = Field(default_factory=dict)
    unmapped: Literal["add", "ignore", "fail"] = "add"
    write: Literal["upsert", "insert_only", "append"] = "upsert"
    delete: Annotated[str, AfterValidator(_delete)] = "apply"
    truncate: Literal["apply", "hold", "ignore"] = "apply"
    hold_deletes_above: OptionalShare = None
    version: Literal["columns", "side", "none"] = "columns"
    conflict: Annotated[str, AfterValidator(_conflict)] = "source"
    owns: str | None = None
    as_: str | None = Field(None, alias="as")
    key: str | None = None
    ttl_s: OptionalDuration = Field(None, alias="ttl")
    text: str | None = None
    chunk: Chunk | None = None
    embed: str | None = None
    dimensions: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> Flow:
        if not all(self.to.split(".", 2)):
            raise fail(
                "has an empty part", key="to", fix="write target, target.schema or target.schema.table"
            )
        if is_pattern(self.to):
            raise fail("a pattern stands in `from` only", key="to", fix="write target or target.schema")
        if self.table is not None and is_pattern(self.source_pattern):
            what = f"`from` fits many tables and `to` names one, {self.table!r}"
            fix = f"write `to: {self.target}.{self.table_schema}` (same table names), or one table in `from`"
            raise fail(what, key="to", fix=fix)
        return self

    @property
    def source(self) -> str:
        """The first part of `from`: a source, or a processor's `out`."""
        return self.source_pattern.split(".", 1)[0]

    @property
    def target(self) -> str:
        return self.to.split(".", 2)[0]

    @property
    def table_schema(self) -> str | None:
        parts = self.to.split(".", 2)
        return parts[1] if len(parts) > 1 else None

    @property
    def table(self) -> str | None:
        parts = self.to.split(".", 2)
        return parts[2] if len(parts) > 2 else None

    def matches(self, topic: str) -> bool:
        """Whether the topic (a cleaned name, see streamer.changes.topics) belongs to this flow."""
        parts = clean_pattern(self.source_pattern).count(".") + 1
        name = tuple(topic.split(".", min(parts, 3) - 1))
        return fits_parts(clean_pattern(self.source_pattern), name)

    def takes(self, schema: str, table: str) -> bool:
        """The same for a table of a Postgres source, by its real name."""
        return fits_parts(self.source_pattern, (self.source, schema, table))

    def place(self, schema: str, table: str) -> tuple[str, str]:
        """(schema, table) in the target for a table of the source."""
        return self.table_schema or schema, self.table or table
