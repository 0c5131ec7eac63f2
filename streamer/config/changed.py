"""A config with schedules that people have changed beside it: the file's own checks and messages. Pure.

Only when and how a job runs can be changed beside the file. What it does stays there: whoever holds a key of
the API must not choose what a process of this machine executes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from yaml.nodes import MappingNode, Node, ScalarNode

from streamer.config.base import Model, closest, no_such
from streamer.config.document import read
from streamer.config.load import explained
from streamer.config.operations import Job, Schedules
from streamer.config.root import Config, check_jobs
from streamer.errors import ConfigError

PREFIX = "schedules.jobs."
TIMES = ("every", "at", "cron")  # one of them takes the place of the others
CHANGEABLE = (
    *TIMES,
    "after",
    "stale_after",
    "max_runtime",
    "grace",
    "retries",
    "priority",
    "overlap",
    "enabled",
)
_FIELDS = tuple(name for name, field in Job.model_fields.items() if (field.alias or name) in CHANGEABLE)
VALUE_BYTES_LIMIT = 2_000  # as JSON: an `after` of many jobs


@dataclass(frozen=True, slots=True)
class Change:
    """`value` None: as if the file did not have the key."""

    job: str
    key: str
    value: Any

    @property
    def path(self) -> str:
        return f"{PREFIX}{self.job}.{self.key}"

    @property
    def replaces(self) -> tuple[str, ...]:
        """Paths of which it takes the place, its own first."""
        others = [key for key in TIMES if key != self.key] if self.key in TIMES else []
        return tuple(f"{PREFIX}{self.job}.{key}" for key in (self.key, *others))


class _Part(Model):
    schedules: Schedules


def change_of(config: Config, path: str, value: Any) -> Change:
    """Raises ConfigError for a path that only the file can change; of the value only its size is judged."""
    job, _, key = path.removeprefix(PREFIX).rpartition(".")
    if not path.startswith(PREFIX) or not job or key not in CHANGEABLE:
        near = closest(key, CHANGEABLE) if path.startswith(PREFIX) else None
        meant = f"did you mean {near!r}? " if near is not None else ""
        raise ConfigError(
            f"{path} cannot be changed beside the file",
            where=str(config.path),
            fix=f"{meant}edit the file and restart; beside it {PREFIX}NAME.KEY can be changed, KEY one of"
            f" {', '.join(CHANGEABLE)}",
        )
    if job not in config.schedules.jobs:
        raise no_such("job", job, config.schedules.jobs, config.path)
    try:
        size = len(orjson.dumps(value))
    except TypeError as error:  # an integer of more than 64 bits
        raise ConfigError(
            f"the value of {path} cannot be kept: {error}", fix="write it as in the file"
        ) from None
    if size > VALUE_BYTES_LIMIT:
        raise ConfigError(f"the value of {path} is too long", fix=f"edit {path} in {config.path}")
    return Change(job, key, value)


def value_of(text: str) -> Any:
    """A value of the command line, read as one of the file: 10m, [a, b], null. Raises ConfigError."""
    if "${" in text:
        what = "the value holds a reference, which only the file can"
        raise ConfigError(what, fix="write the value itself: '10m', '[a, b]'")
    try:
        data = read(f"value: {text}", Path("value"), {}).data
    except ConfigError as error:
        raise ConfigError(f"the value {error.what}", fix="write it as in the file: '10m', '[a, b]'") from None
    if not isinstance(data, dict) or list(data) != ["value"]:
        raise ConfigError("the value is not one", fix="write it as in the file: '10m', '[a, b]'")
    return data["value"]


def changed(config: Config, changes: Iterable[Change]) -> Config:
    """In this order. Raises ConfigError as the file would, without a line."""
    jobs: dict[str, Any] = dict(config.schedules.jobs)
    for change in changes:
        if change.job not in jobs:
            raise no_such("job", change.job, jobs, config.path)
        job = jobs[change.job]
        if not isinstance(job, dict):
            job = jobs[change.job] = job.model_dump(by_alias=True, exclude_unset=True)
        for key in TIMES if change.key in TIMES else ():
            job.pop(key, None)
        job.pop(change.key, None)
        if change.value is not None:
            job[change.key] = change.value
    data = {"schedules": {"timezone": config.schedules.timezone, "jobs": jobs}}
    try:
        part = _Part.model_validate(data)
        found = config.model_copy(update={"schedules": part.schedules})
        try:
            check_jobs(found)
        except PydanticCustomError as fault:
            details = [InitErrorDetails(type=fault, input=None)]
            raise ValidationError.from_exception_data("Config", details, hide_input=True) from None
    except ValidationError as error:
        problem = explained(error, data)[0]
        raise ConfigError(problem.what, where=str(config.path), fix=problem.fix) from None
    return found


def plain(config: Config, change: Change) -> dict[str, Any]:
    """What a config has where this is changed, as JSON has it: durations in seconds. Of a job's times the one
    that is set; of a job that is not there nothing."""
    job = config.schedules.jobs.get(change.job)
    if job is None:
        return {}
    values = job.model_dump(mode="json", by_alias=True, include=set(_FIELDS))
    keys = TIMES if change.key in TIMES else (change.key,)
    return {key: values[key] for key in keys if values[key] not in (None, [])}


def exported(text: str, changes: Iterable[Change]) -> str:
    """`schedules:` of a file's text with these merged into it: its words and references as they stand."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, MappingNode)
    schedules = _child(root, "schedules")
    if schedules is None:
        return ""
    jobs = _child(schedules, "jobs")
    for change in changes:
        job = None if jobs is None else _child(jobs, change.job)
        if isinstance(job, MappingNode):
            gone = TIMES if change.key in TIMES else (change.key,)
            job.value = [(key, value) for key, value in job.value if key.value not in gone]
            if change.value is not None:
                job.value.append((_node(change.key), _node(change.value)))
    alone = MappingNode("tag:yaml.org,2002:map", [(_node("schedules"), schedules)], flow_style=False)
    return yaml.serialize(alone, Dumper=yaml.SafeDumper, width=110, allow_unicode=True)


def _child(node: Node, key: str) -> Node | None:
    entries: list[tuple[Node, Node]] = node.value if isinstance(node, MappingNode) else []
    return next(
        (value for name, value in entries if isinstance(name, ScalarNode) and name.value == key), None
    )


def _node(value: Any) -> Node:
    node = yaml.compose(yaml.safe_dump(value, default_flow_style=True), Loader=yaml.SafeLoader)
    assert node is not None
    return node
