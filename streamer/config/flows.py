"""`targets:` and `flows:`: where changes go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from streamer.changes.topics import is_inner, message_topic
from streamer.config.base import NAME_KEY, BasePath, Model, PostgresUrl, fail
from streamer.config.key_template import parse_template, split_template
from streamer.config.patterns import fits_parts, fits_topic, is_pattern
from streamer.config.redis_urls import RedisServerUrl
from streamer.config.sql_urls import SqlUrl
from streamer.config.units import Duration, OptionalDuration, OptionalShare, Rate, Share, Size

_SOFT = re.compile(r"apply|ignore|soft\([^()]+\)")
_FUNCTION = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_CONFLICT = re.compile(r"source|target|(?:newest|greatest)\([^()]+\)")


class Batch(Model):
    rows: int = Field(10_000, ge=1, le=1_000_000)
    bytes: Size = Field(16 * 2**20, ge=1024)
    wait_s: Duration = Field(0.003, alias="wait", le=60)


class DeadLetterLimits(Model):
    """Above them the target pauses: it is no row's fault any more. A parked key is held in memory."""

    limit: int = Field(1000, ge=0, le=100_000)  # parked keys of a process
    share: Share = 0.10  # of a minute's rows


class PostgresTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["postgres"]
    url: PostgresUrl
    batch: Batch = Batch()
    dead_letters: DeadLetterLimits = DeadLetterLimits()
    origin: str | None = None


class SqlTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["sql"]
    url: SqlUrl
    batch: Batch = Batch()
    dead_letters: DeadLetterLimits = DeadLetterLimits()


class RedisBatch(Batch):
    """A batch is one script, and the server does nothing else meanwhile: 3-4 ms of CPU for 500 rows of 8
    columns. Twice as many rows cost apply a tenth less CPU a row."""

    rows: int = Field(500, ge=1, le=100_000)
    bytes: Size = Field(4 * 2**20, ge=1024)


class RedisTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["redis"]
    url: RedisServerUrl
    batch: RedisBatch = RedisBatch()
    dead_letters: DeadLetterLimits = DeadLetterLimits()


class VectorBatch(Batch):
    """Its texts are embedded before any of its rows is written: a model that takes 50 a second needs 20 s."""

    rows: int = Field(1000, ge=1, le=100_000)
    bytes: Size = Field(4 * 2**20, ge=1024)


class Embedding(Model):
    """How the functions that `embed` names are called."""

    texts: int = Field(256, ge=1, le=10_000)  # of one call
    rate: Rate = 0  # texts a second, 0: no limit
    timeout_s: Duration = Field(60, alias="timeout", gt=0, le=3600)  # of one call


class VectorTarget(Model):
    name: str = Field(alias=NAME_KEY)
    kind: Literal["pgvector"]
    url: PostgresUrl
    batch: VectorBatch = VectorBatch()
    dead_letters: DeadLetterLimits = DeadLetterLimits()
    embedding: Embedding = Embedding()
    modules: BasePath = Field(Path(), validate_default=True)


class MemoryTarget(Model):
    """In the process that applies, for tests: see docs/targets.md."""

    name: str = Field(alias=NAME_KEY)
    kind: Literal["memory"]
    batch: Batch = Batch()
    dead_letters: DeadLetterLimits = DeadLetterLimits()


Target = Annotated[
    PostgresTarget | SqlTarget | RedisTarget | VectorTarget | MemoryTarget, Field(discriminator="kind")
]


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
    """Of what the file has, and of what is written out again."""
    return "column-rule" if isinstance(value, dict | ColumnRule) else "column-name"


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

    @model_validator(mode="after")
    def _goes_on(self) -> Chunk:
        if self.overlap >= self.tokens:
            what = f"an overlap of {self.overlap} of {self.tokens} tokens never comes to the text's end"
            raise fail(what, key="overlap", fix="write fewer than `tokens`; a tenth of them is usual")
        return self


def _delete(value: str) -> str:
    if not _SOFT.fullmatch(value):
        raise fail("is not a way to delete", fix="write apply, soft(column) or ignore")
    return value


def _conflict(value: str) -> str:
    if not _CONFLICT.fullmatch(value):
        raise fail("is not a conflict rule", fix="write source, target, newest(column) or greatest(column)")
    return value


def _template(value: str) -> str:
    try:
        parse_template(value)
    except ValueError as error:
        raise fail(str(error), fix='write it as "user:{id}", with the names of columns in braces') from error
    return value


def _text(value: str) -> str:
    try:
        _, names = split_template(value)
    except ValueError as error:
        raise fail(str(error), fix='write it as "{title}\\n\\n{body}", columns in braces') from error
    if not names:
        raise fail("names no column", fix='write it as "{title}\\n\\n{body}", columns in braces')
    return value


def _function(value: str) -> str:
    if not _FUNCTION.fullmatch(value):
        raise fail("is not the path of a function", fix='write "package.module:function"')
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
    as_: Literal["hash", "json", "zset", "set"] | None = Field(None, alias="as")
    key: Annotated[str, AfterValidator(_template)] | None = None
    member: Annotated[str, AfterValidator(_template)] | None = None
    score: str | None = None
    ttl_s: OptionalDuration = Field(None, alias="ttl")
    text: Annotated[str, AfterValidator(_text)] | None = None
    chunk: Chunk | None = None
    embed: Annotated[str, AfterValidator(_function)] | None = None
    dimensions: int | None = Field(None, ge=1, le=16_000)  # what pgvector's `vector` holds

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

    @model_validator(mode="after")
    def _of_redis(self) -> Flow:
        members = self.as_ in ("zset", "set")
        if members and self.member is None:
            fix = "write `member: column`, a column of the row's key"
            raise fail(f"as: {self.as_} needs the column of its members", key="as", fix=fix)
        if self.as_ == "zset" and self.score is None:
            raise fail("as: zset needs the column of its scores", key="as", fix="write `score: column`")
        if self.member is not None and not members:
            raise fail("only a zset or a set has members", key="member", fix="write as: zset or as: set")
        if self.score is not None and self.as_ != "zset":
            raise fail("only a zset has scores", key="score", fix="write as: zset, or remove `score`")
        if members and self.ttl_s is not None:
            fix = "remove `ttl`, or write the rows as: hash or as: json"
            raise fail("Redis lets no member of a zset or set expire", key="ttl", fix=fix)
        if members and self.delete.startswith("soft("):
            fix = "write delete: apply or ignore"
            raise fail(f"a member of a {self.as_} has no place for {self.delete}", key="delete", fix=fix)
        if members and self.write == "append":
            fix = "write as: hash or as: json, where each change has a key of its own"
            raise fail("write: append keeps rows, not members", key="write", fix=fix)
        if self.key is not None and is_pattern(self.source_pattern):
            fix = "name one table in `from`, or remove `key`: keys are schema:table:key then"
            raise fail("one `key` for the rows of many tables would mix them up", key="key", fix=fix)
        return self

    @model_validator(mode="after")
    def _of_vectors(self) -> Flow:
        wanted = {"text": self.text, "embed": self.embed, "dimensions": self.dimensions}
        given = [key for key, value in wanted.items() if value is not None]
        missing = [key for key, value in wanted.items() if value is None]
        if given and missing:
            what = f"`{given[0]}` stands without `{missing[0]}`"
            raise fail(what, key=given[0], fix="text, embed and dimensions belong together")
        if self.chunk is not None and missing:
            raise fail("there is no `text` to cut", key="chunk", fix="write text, embed and dimensions")
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
        """Whether the topic (a cleaned name, see streamer.changes.topics) belongs to this flow.

        The topic of messages about the source does not, whatever the pattern.
        """
        if topic == message_topic(self.source) or is_inner(topic):
            return False
        return fits_topic(self.source_pattern, topic)

    def takes(self, schema: str, table: str) -> bool:
        """The same for a table of a Postgres source, by its real name."""
        return fits_parts(self.source_pattern, (self.source, schema, table))

    def place(self, schema: str, table: str) -> tuple[str, str]:
        """(schema, table) in the target for a table of the source; a derived one has no schema of its own."""
        return self.table_schema or schema or self.source, self.table or table
