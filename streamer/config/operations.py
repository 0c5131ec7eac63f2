"""`processors:`, `reconcile:`, `schedules:` and `alerts:`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from streamer.config.base import Model, OptionalPath, OptionalSecret, fail
from streamer.config.units import Duration, OptionalDuration, Share

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


Code = Annotated[str, AfterValidator(_code)]


class Processor(Model):
    agent: Code
    inputs: tuple[str, ...] = Field(alias="in", min_length=1)
    out: str = Field(min_length=1)
    key: tuple[str, ...] = Field((), alias="key")
    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"


class InlineFlow(Model):
    source_pattern: str = Field(alias="from", min_length=1)
    to: str = Field(min_length=1)


class Repair(Model):
    mode: Literal["never", "plan", "auto"] = "never"
    limit: int = Field(100_000, ge=0)
    refuse_above: Share = 0.2
    delete_extra: bool = False


class Windows(Model):
    column: str
    sizes_s: tuple[Duration, ...] = Field(alias="sizes", min_length=1)


def _flow_form(value: Any) -> str:
    return "flow-name" if isinstance(value, str) else "inline-flow"


class Reconcile(Model):
    flow: Annotated[
        Annotated[str, Tag("flow-name")] | Annotated[InlineFlow, Tag("inline-flow")],
        Discriminator(_flow_form),
    ]
    threshold: Share = 0.0
    repair: Repair = Repair()
    group_by: str | None = None
    windows: Windows | None = None
    log: OptionalPath = None


class Action(Model):
    """One step before or after a job."""

    backup: str | None = None
    keep: int | None = Field(None, ge=1)
    http: OptionalSecret = None
    exec: Code | None = None

    @model_validator(mode="after")
    def _one(self) -> Action:
        kinds = self.model_fields_set & {"backup", "http", "exec"}
        if len(kinds) != 1:
            raise fail("a step does one thing", fix="give one of backup, http, exec")
        return self


class Job(Model):
    pull: str | None = None
    exec: Code | None = None
    reconcile: str | None = None
    every_s: OptionalDuration = Field(None, alias="every", gt=0)
    at: tuple[Annotated[str, AfterValidator(_clock)], ...] = ()
    after: tuple[str, ...] = ()
    before: tuple[Action, ...] = ()
    on_done: tuple[Action, ...] = ()
    args: dict[str, Any] = Field(default_factory=dict)
    stale_after_s: OptionalDuration = Field(None, alias="stale_after")
    max_runtime_s: OptionalDuration = Field(None, alias="max_runtime")
    priority: int = 0
    overlap: Literal["skip"] = "skip"
    enabled: bool = True

    @model_validator(mode="after")
    def _complete(self) -> Job:
        if sum(x is not None for x in (self.pull, self.exec, self.reconcile)) != 1:
            raise fail("a job does one thing", fix="give one of pull, exec, reconcile")
        if self.every_s is not None and self.at:
            raise fail("`every` and `at` exclude each other", key="at", fix="keep one")
        if self.every_s is None and not self.at and not self.after:
            raise fail("the job never fires", fix="give every, at or after")
        return self


class Schedules(Model):
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    jobs: dict[str, Job] = Field(default_factory=dict)


class Channel(Model):
    webhook: OptionalSecret = None
    secret: OptionalSecret = None


class DeadMan(Model):
    ping: OptionalSecret = None
    every_s: Duration = Field(60.0, alias="every", gt=0)


Alarm = Literal["drift", "stale", "stalled", "dead_letter", "slot_at_risk", "missed_job", "held"]


class AlertRule(Model):
    when: tuple[Alarm, ...] = Field(min_length=1)
    to: tuple[str, ...] = Field(min_length=1)
    repeat_s: Duration = Field(3600.0, alias="repeat", gt=0)


class Alerts(Model):
    channels: dict[str, Channel] = Field(default_factory=dict)
    dead_man: DeadMan | None = None
    rules: tuple[AlertRule, ...] = ()
