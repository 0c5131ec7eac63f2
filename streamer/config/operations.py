"""`processors:`, `reconcile:`, `schedules:` and `alerts:`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from streamer.changes.topics import is_inner
from streamer.config.base import NAME_KEY, Model, Name, OptionalPath, OptionalSecret, fail
from streamer.config.cron import CronLine
from streamer.config.flows import Flow
from streamer.config.patterns import is_pattern
from streamer.config.units import Duration, OptionalDuration, Rate, Share

_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _code(value: str) -> str:
    if not _CODE.fullmatch(value):
        raise fail("is not an import path", fix="write package.module:name")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise fail(
            "is not a time zone", fix="write one of the tz database: UTC, Europe/Vienna, ..."
        ) from None
    return value


def _clock(value: str) -> str:
    if not _CLOCK.fullmatch(value):
        raise fail("is not a time of day", fix='write "02:00" to "23:59"')
    return value


def _cron(value: str) -> str:
    try:
        line = CronLine(value)
    except ValueError as error:
        raise fail(
            f"is not a cron line: {error}", fix='write five fields, such as "30 6 * * mon-fri"'
        ) from None
    if line.at_or_after(datetime(2024, 1, 1, tzinfo=UTC)) is None:
        raise fail("is a cron line that never comes", fix="look at the day and the month")
    return value


JOB_KINDS = ("pull", "exec", "reconcile", "backfill", "replay")

Code = Annotated[str, AfterValidator(_code)]

SPAN_LIMIT_S = 10 * 366 * 86_400.0  # ten years: more is a slip, and no date far enough to count with
EVERY_LEAST_S = 1.0  # a scheduler looks no oftener
PRIORITY_LIMIT = 1_000_000


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise fail("is not a number", fix="write a whole number")
    return value


Number = Annotated[int, BeforeValidator(_no_switch)]  # `true` is no 1


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fail(f"{name!r} is named twice", key=index, fix="name it once")
    return names


def _inputs(topics: tuple[str, ...]) -> tuple[str, ...]:
    if not topics:
        raise fail("names no topic", fix="name at least one, for example [shop.public.orders]")
    for index, topic in enumerate(topics):
        if is_inner(topic):
            raise fail(
                f"{topic!r} is a processor's own topic, and none of rows", key=index, fix="name its `out`"
            )
    return _once(topics)


def _key(names: tuple[str, ...]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not name or name.startswith("_tailrace"):
            fix = "name columns of the derived rows; what begins with _tailrace is Tailrace's own"
            raise fail(f"{name!r} is no column of a derived row", key=index, fix=fix)
    return _once(names)


class Processor(Model):
    agent: Code
    inputs: Annotated[tuple[str, ...], AfterValidator(_inputs)] = Field(alias="in")
    out: str = Field(min_length=1)
    key: Annotated[tuple[str, ...], AfterValidator(_key)] = ()
    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"

    @property
    def grows(self) -> bool:
        """Whether later starts may find more inputs."""
        return any(is_pattern(pattern) for pattern in self.inputs)


class InlineFlow(Model):
    """A flow that nothing applies: what a query gives is compared with a table that somebody else keeps."""

    source_pattern: str = Field(alias="from", min_length=1)
    to: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_table(self) -> InlineFlow:
        parts = self.to.split(".", 2)
        if len(parts) < 3 or not all(parts):
            raise fail("names no table", key="to", fix="write target.schema.table")
        return self

    def named(self, name: str) -> Flow:
        return Flow.model_validate({NAME_KEY: name, "from": self.source_pattern, "to": self.to})


class Repair(Model):
    mode: Literal["never", "plan", "auto"] = "never"
    limit: Number = Field(100_000, ge=0)
    refuse_above: Share = 0.2
    delete_extra: bool = False


WINDOWS_LIMIT = 10  # each is counted for each group
WINDOW_LIMIT_S = 100 * 366 * 86_400.0  # years of four digits compare as texts do


class Windows(Model):
    """Rows whose column is within the last so many seconds."""

    column: str = Field(min_length=1)
    sizes_s: tuple[Annotated[Duration, Field(ge=1, le=WINDOW_LIMIT_S)], ...] = Field(
        alias="sizes", min_length=1, max_length=WINDOWS_LIMIT
    )


class Limits(Model):
    """What spares a source and a flow while they are compared."""

    rate: Rate = 0.0
    max_lag_s: OptionalDuration = Field(None, alias="max_lag", gt=0, le=SPAN_LIMIT_S)


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else () if value is None else value


def _flow_form(value: Any) -> str:
    return "flow-name" if isinstance(value, str) else "inline-flow"


class Reconcile(Model):
    flow: Annotated[
        Annotated[str, Tag("flow-name")] | Annotated[InlineFlow, Tag("inline-flow")],
        Discriminator(_flow_form),
    ]
    sql: str | None = Field(None, min_length=1)  # what a processor's rows are, as a query of its source
    on: str | None = None
    threshold: Share = 0.0
    repair: Repair = Repair()
    group_by: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    windows: Windows | None = None
    limits: Limits = Limits()
    log: OptionalPath = None


class Action(Model):
    """One step before or after a job."""

    backup: str | None = None
    keep: Number | None = Field(None, ge=1)
    http: OptionalSecret = None
    exec: Code | None = None

    @model_validator(mode="after")
    def _one(self) -> Action:
        kinds = self.model_fields_set & {"backup", "http", "exec"}
        if len(kinds) != 1:
            raise fail("a step does one thing", fix="give one of backup, http, exec")
        return self


class Job(Model):
    """One of pull, exec, reconcile, backfill (SOURCE.TABLE) or replay (FLOW), and when.

    `args`: of the function, or options of the command.
    """

    pull: str | None = None
    exec: Code | None = None
    reconcile: str | None = None
    backfill: str | None = None
    replay: str | None = None
    every_s: OptionalDuration = Field(None, alias="every", ge=EVERY_LEAST_S, le=SPAN_LIMIT_S)
    at: tuple[Annotated[str, AfterValidator(_clock)], ...] = ()
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    after: tuple[str, ...] = ()
    before: tuple[Action, ...] = ()
    on_done: tuple[Action, ...] = ()
    args: dict[str, Any] = Field(default_factory=dict)
    stale_after_s: OptionalDuration = Field(None, alias="stale_after", le=SPAN_LIMIT_S)
    max_runtime_s: OptionalDuration = Field(None, alias="max_runtime", le=SPAN_LIMIT_S)
    grace_s: Duration = Field(60.0, alias="grace", gt=0, le=SPAN_LIMIT_S)
    retries: Number = Field(0, ge=0, le=10)
    priority: Number = Field(0, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)
    overlap: Literal["skip", "queue"] = "skip"
    enabled: bool = True

    @property
    def kind(self) -> str:
        return next(kind for kind in JOB_KINDS if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _complete(self) -> Job:
        if sum(getattr(self, kind) is not None for kind in JOB_KINDS) != 1:
            raise fail("a job does one thing", fix=f"give one of {', '.join(JOB_KINDS)}")
        times = [
            name for name, given in (("every", self.every_s), ("at", self.at), ("cron", self.cron)) if given
        ]
        if len(times) > 1:
            raise fail(f"`{times[0]}` and `{times[1]}` exclude each other", key=times[1], fix="keep one")
        if not times and not self.after:
            raise fail("the job never fires", fix="give every, at, cron or after")
        return self


class Schedules(Model):
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    jobs: dict[Name, Job] = Field(default_factory=dict)


class Channel(Model):
    webhook: OptionalSecret = None
    secret: OptionalSecret = None


class DeadMan(Model):
    ping: OptionalSecret = None
    every_s: Duration = Field(60.0, alias="every", gt=0, le=SPAN_LIMIT_S)


Alarm = Literal["drift", "stale", "stalled", "dead_letter", "slot_at_risk", "missed_job", "held"]


class AlertRule(Model):
    when: tuple[Alarm, ...] = Field(min_length=1)
    to: tuple[str, ...] = Field(min_length=1)
    repeat_s: Duration = Field(3600.0, alias="repeat", gt=0, le=SPAN_LIMIT_S)


class Alerts(Model):
    channels: dict[Name, Channel] = Field(default_factory=dict)
    dead_man: DeadMan | None = None
    rules: tuple[AlertRule, ...] = ()
