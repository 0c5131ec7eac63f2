"""The whole file, and the checks that need more than one part of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamer.changes.topics import (
    bad_topic,
    clean,
    data_topic,
    dead_letters_topic,
    entity_topic,
    message_topic,
    positions_topic,
    schemas_topic,
    shadow_topic,
    status_topic,
)
from streamer.config.base import NAME_KEY, Model, Name, again, fail, nearest
from streamer.config.derived import circle, processor_faults, sql_faults
from streamer.config.flows import (
    Flow,
    RedisTarget,
    Target,
    VectorTarget,
)
from streamer.config.key_template import parse_template
from streamer.config.operations import Alerts, InlineFlow, Processor, Reconcile, Schedules
from streamer.config.patterns import is_pattern
from streamer.config.redis_entities import RedisSource
from streamer.config.references import Names, flow_faults, source_faults, target_faults
from streamer.config.settings import Control, Defaults, Kafka
from streamer.config.sources import (
    IDENTIFIER_BYTES,
    PostgresSource,
    PullSource,
    QuerySource,
    Source,
)
from streamer.config.stores import apart, first_shared, place_of, store_of
from streamer.config.writers import Writers
from streamer.errors import ConfigError


class Config(Model):
    """One config file. `path` is the file, `base` its folder: relative paths start there."""

    path: Path = Field(Path("tailrace.yaml"), alias="__path__")
    name: Name
    kafka: Kafka = Kafka()
    control: Control = Control()
    defaults: Defaults = Defaults()
    sources: dict[Name, Source] = Field(default_factory=dict)
    processors: dict[Name, Processor] = Field(default_factory=dict)
    targets: dict[Name, Target] = Field(default_factory=dict)
    flows: dict[Name, Flow] = Field(default_factory=dict)
    reconcile: dict[Name, Reconcile] = Field(default_factory=dict)
    schedules: Schedules = Schedules()
    alerts: Alerts = Alerts()

    @property
    def base(self) -> Path:
        return self.path.parent

    def place(self, kind: str, name: str, host: str) -> str:
        """Of the store that a part works with, seen from `host`; empty: it has none, or cannot tell."""
        stores = {"capture": self.sources.get(name), "apply": self.targets.get(name)}
        store = stores.get(kind)
        return place_of(store, host) if store is not None else ""

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """Each source, target and flow learns its name; slots and publications get theirs from it."""
        if not isinstance(data, dict):
            return data
        data = {key: value for key, value in data.items() if value is not None}
        for part in ("sources", "targets", "flows"):
            entries = data.get(part)
            if isinstance(entries, dict):
                named = {n: {**e, NAME_KEY: n} if isinstance(e, dict) else e for n, e in entries.items()}
                if part == "sources":
                    named = {n: _with_slot(n, e) for n, e in named.items()}
                data[part] = named
        return data

    @model_validator(mode="after")
    def _whole(self) -> Config:
        checks = [_check_sources, _check_topics, _check_names, _check_processors, _check_operations]
        if all(flow.target in self.targets for flow in self.flows.values()):
            checks += [_check_writers, _check_stores, _check_texts, _check_keys]
        faults = []
        for check in checks:
            try:
                check(self)
            except PydanticCustomError as fault:
                faults.append(_error(fault))
        if faults:
            raise ValidationError.from_exception_data(type(self).__name__, faults, hide_input=True)
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _named(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """What flows name is judged beside all else, also where the rest is no config.

        The last validator: pydantic runs those above it inside of `handler`.
        """
        named = flow_faults({**data, **cls._meant(data)}) if isinstance(data, dict) else ()
        faults = [_error(fault) for fault in named]
        try:
            config = handler(data)
        except ValidationError as error:
            faults += [again(each) for each in error.errors(include_url=False)]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults, hide_input=True)
        return config


def _error(fault: PydanticCustomError) -> InitErrorDetails:
    return InitErrorDetails(type=fault, input=None)


def _with_slot(name: str, entry: Any) -> Any:
    if not isinstance(entry, dict) or entry.get("kind") != "postgres":
        return entry
    default = {"name": default_slot_name(name)}
    filled = {
        part: {**default, **(entry.get(part) or {})}
        for part in ("slot", "publication")
        if _mapping(entry, part)
    }
    return {**entry, **filled}


def _mapping(entry: dict[str, Any], part: str) -> bool:
    return entry.get(part) is None or isinstance(entry[part], dict)


def default_slot_name(source: str) -> str:
    return ("tailrace_" + re.sub(r"[^a-z0-9_]", "_", source.lower()))[:IDENTIFIER_BYTES]


def _check_sources(config: Config) -> None:
    if not config.sources:
        raise fail("there are no sources", key="sources", fix="add one; `tailrace init` writes an example")
    slots: dict[tuple[str, str], str] = {}
    topics: dict[str, str] = {}
    for name, source in config.sources.items():
        other = topics.setdefault(clean(name).lower(), name)
        if other != name:
            raise fail(f"{name!r} and {other!r} differ only in case", key=("sources", name), fix="rename one")
        if isinstance(source, PostgresSource):
            place = source.url.get_secret_value(), source.slot.name
            other = slots.setdefault(place, name)
            if other != name:
                what = f"{name!r} and {other!r} use the slot {source.slot.name!r} of the same database"
                raise fail(what, key=("sources", name), fix="give one of them another slot.name")
        if isinstance(source, QuerySource):
            on = config.sources.get(source.on)
            if on is None:
                key = ("sources", name, "on")
                raise fail(
                    f"there is no source {source.on!r}", key=key, fix=nearest(source.on, config.sources)
                )
            if not isinstance(on, PostgresSource):
                what = f"a query runs on a postgres source, {source.on!r} is {on.kind}"
                raise fail(what, key=("sources", name, "on"), fix="name a postgres source")
        if isinstance(source, PullSource):
            for entity_name, entity in source.entities.items():
                if entity.for_each is not None and entity.for_each not in source.entities:
                    key4 = ("sources", name, "entities", entity_name, "for_each")
                    what = f"there is no entity {entity.for_each!r}"
                    raise fail(what, key=key4, fix=nearest(entity.for_each, source.entities))


def _check_names(config: Config) -> None:
    """What a source could not take and what a target could not would go to one topic."""
    for name in config.targets:
        if name in config.sources:
            topic = dead_letters_topic(name)
            what = f"a source has the name {name!r} too: both would share the topic {topic}"
            raise fail(what, key=("targets", name), fix="rename the target, or the source")


def _check_topics(config: Config) -> None:
    """Two things that would write to one topic; tables of patterns are judged by check_topics."""
    owners: dict[str, str] = {}
    for topic, owner, key in _topics(config):
        other = owners.setdefault(topic, owner)
        if other != owner:
            raise fail(f"{owner} would share the topic {topic} with {other}", key=key, fix="rename one")


def _topics(config: Config) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
    """(topic, whose it is, place in the file); our own ones first."""
    for topic in (positions_topic, schemas_topic, status_topic):
        yield topic(config.name), "Tailrace itself", ("name",)
    for name in config.targets:
        yield dead_letters_topic(name), f"the dead letters of target {name!r}", ("targets", name)
    for name, source in config.sources.items():
        place: tuple[str | int, ...] = ("sources", name)
        if isinstance(source, (PostgresSource, RedisSource)):
            yield message_topic(name), f"the messages of source {name!r}", place
        if isinstance(source, RedisSource):
            yield shadow_topic(config.name, name), f"the shadow of source {name!r}", place
            yield bad_topic(config.name, name), f"the bad values of source {name!r}", place
        if isinstance(source, (RedisSource, PullSource)):
            for entity in source.entities:
                yield entity_topic(name, entity), f"entity {entity!r}", (*place, "entities", entity)
        if isinstance(source, PostgresSource):
            for table, rule in source.tables.items():
                if rule != "exclude" and not is_pattern(table):
                    yield data_topic(name, *table.split(".", 1)), f"table {table}", (*place, "tables", table)
        if isinstance(source, QuerySource):
            yield clean(name), f"source {name!r}", place
    for name, processor in config.processors.items():
        yield processor.out, f"processor {name!r}", ("processors", name, "out")


def _check_texts(config: Config) -> None:
    """What goes to vectors has a text."""
    for flow in config.flows.values():
        if isinstance(config.targets[flow.target], VectorTarget) and flow.text is None:
            what = f"{flow.target} is of kind pgvector, and the flow says no `text` to embed"
            fix = 'write text: "{column}", embed: "module:function" and dimensions'
            raise fail(what, key=("flows", flow.name), fix=fix)


def _check_keys(config: Config) -> None:
    """Two flows never write the same keys of a Redis target: neither would know the other's versions."""
    shapes: dict[tuple[str, str], str] = {}
    for flow in config.flows.values():
        if flow.key is None or not isinstance(config.targets[flow.target], RedisTarget):
            continue
        shape = flow.target, parse_template(flow.key).shape
        other = shapes.setdefault(shape, flow.name)
        if other != flow.name:
            what = f"the flows {other!r} and {flow.name!r} would write the same keys of {flow.target}"
            raise fail(what, key=("flows", flow.name, "key"), fix="begin one of the keys with another word")


def _check_stores(config: Config) -> None:
    """Two targets never are one store: its checkpoints, floors and parked keys are of one consumer group."""
    used = [name for name in config.targets if any(flow.target == name for flow in config.flows.values())]
    shared = first_shared((name, store_of(config.targets[name])) for name in used)
    if shared is not None:
        other, name = shared
        what = f"the targets {other!r} and {name!r} are one store"
        fix = apart(other, name, config.targets[name].kind)
        raise fail(what, key=("targets", name, "url"), fix=fix)


def _check_writers(config: Config) -> None:
    _raise_first(Writers(config.sources, config.targets, config.flows).faults())


def _names(config: Config) -> Names:
    sources = {
        name: (source.kind, tuple(source.entities) if isinstance(source, RedisSource | PullSource) else ())
        for name, source in config.sources.items()
    }
    outs = tuple(processor.out for processor in config.processors.values())
    return Names(sources, outs, tuple(config.targets))


def _check_processors(config: Config) -> None:
    parts = config.sources, config.processors, config.targets, config.flows
    _raise_first(processor_faults(_names(config), *parts))


def _raise_first(faults: Iterator[PydanticCustomError]) -> None:
    for fault in faults:
        raise fault


def _check_operations(config: Config) -> None:
    names = _names(config)
    for name, rule in config.reconcile.items():
        if isinstance(rule.flow, InlineFlow):
            place = ("reconcile", name, "flow")
            _raise_first(source_faults(names, rule.flow.source_pattern, (*place, "from")))
            _raise_first(target_faults(names, rule.flow.to.split(".", 1)[0], (*place, "to")))
        elif rule.flow not in config.flows:
            key = ("reconcile", name, "flow")
            raise fail(f"there is no flow {rule.flow!r}", key=key, fix=nearest(rule.flow, config.flows))
        _raise_first(sql_faults(config.sources, config.processors, config.flows, name, rule))
    check_jobs(config)
    channels = config.alerts.channels
    for index, alert in enumerate(config.alerts.rules):
        for to in alert.to:
            if to not in channels:
                key5 = ("alerts", "rules", index, "to")
                raise fail(f"there is no channel {to!r}", key=key5, fix=nearest(to, channels))


def check_jobs(config: Config) -> None:
    """What jobs name, and whether they wait for themselves. Raises PydanticCustomError."""
    jobs = config.schedules.jobs
    pulls = [n for n, s in config.sources.items() if isinstance(s, PullSource)]
    known = {
        "pull": ("pull source", pulls),
        "reconcile": ("reconcile", list(config.reconcile)),
        "replay": ("flow", list(config.flows)),
    }
    for name, job in jobs.items():
        place = ("schedules", "jobs", name)
        what, names = known.get(job.kind, ("", []))
        wanted = getattr(job, job.kind)
        if what and wanted not in names:
            raise fail(f"there is no {what} {wanted!r}", key=(*place, job.kind), fix=nearest(wanted, names))
        if job.backfill is not None:
            _raise_first(source_faults(_names(config), job.backfill, (*place, "backfill")))
        for before in job.after:
            if before not in jobs:
                others = [j for j in jobs if j != name]
                raise fail(
                    f"there is no other job {before!r}", key=(*place, "after"), fix=nearest(before, others)
                )
    found = circle({name: job.after for name, job in jobs.items()})
    if found:
        place = ("schedules", "jobs", found[0])
        way = " after ".join(found)
        raise fail(f"the job waits for itself: {way}", key=(*place, "after"), fix="remove one of these")


def check_topics(names: Iterable[tuple[str, str, str]]) -> None:
    """Two tables whose cleaned topic names collide are refused; `names`: (source, schema, table).

    Kafka also takes names that differ in '.' and '_' only for a collision of their metrics, and case
    matters to it; only equal names are refused here. Raises ConfigError.
    """
    seen: dict[str, tuple[str, str, str]] = {}
    for source, schema, table in names:
        topic = f"{clean(source)}.{clean(schema)}.{clean(table)}"
        other = seen.setdefault(topic, (source, schema, table))
        if other != (source, schema, table):
            one, two = (f'"{s}"."{t}"' for _, s, t in (other, (source, schema, table)))
            raise ConfigError(
                f"the tables {one} and {two} of {source!r} would share the topic {topic}",
                fix="rename one, or leave one out: its name with `exclude`, first in `tables`",
            )
