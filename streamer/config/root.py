"""The whole file, and the checks that need more than one part of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

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
from streamer.config.base import NAME_KEY, Model, checked_name, fail, nearest
from streamer.config.flows import (
    Flow,
    MemoryTarget,
    PostgresTarget,
    RedisTarget,
    SqlTarget,
    Target,
    VectorTarget,
)
from streamer.config.key_template import parse_template
from streamer.config.operations import Alerts, InlineFlow, Processor, Reconcile, Schedules
from streamer.config.patterns import is_pattern, may_meet
from streamer.config.redis_entities import RedisSource
from streamer.config.settings import Control, Defaults, Kafka
from streamer.config.sources import (
    IDENTIFIER_BYTES,
    PostgresSource,
    PullSource,
    QuerySource,
    Source,
)
from streamer.errors import ConfigError

Name = Annotated[str, AfterValidator(checked_name)]

_PARTS = {"postgres": 3, "redis": 2, "pull": 2, "query": 1}
_FORMS = {3: "{0}.schema.table", 2: "{0}.entity", 1: "{0}"}


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
        _check_sources(self)
        _check_topics(self)
        _check_names(self)
        for flow in self.flows.values():
            _check_from(self, flow.source_pattern, ("flows", flow.name, "from"))
            _check_target(self, flow.target, ("flows", flow.name, "to"))
        _check_writers(self)
        _check_texts(self)
        _check_keys(self)
        _check_operations(self)
        return self


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


def _check_from(config: Config, pattern: str, key: tuple[str | int, ...]) -> None:
    head = pattern.split(".", 1)[0]
    outs = [p.out for p in config.processors.values()]
    if pattern in outs:
        return
    source = config.sources.get(head)
    if source is None:
        raise fail(f"there is no source {head!r}", key=key, fix=nearest(head, [*config.sources, *outs]))
    wanted = _PARTS[source.kind]
    parts = pattern.split(".", wanted - 1)
    if len(parts) != wanted or not all(parts) or (wanted < 3 and "." in parts[-1]):
        form = _FORMS[wanted].format(head)
        example = f" (for all of a schema: {head}.public.*)" if wanted == 3 else ""
        raise fail(f"{pattern!r} does not name what to take", key=key, fix=f"write {form}{example}")
    if isinstance(source, (RedisSource, PullSource)) and not any(
        may_meet(parts[1], e) for e in source.entities
    ):
        raise fail(f"{head!r} has no entity {parts[1]!r}", key=key, fix=nearest(parts[1], source.entities))


def _check_target(config: Config, name: str, key: tuple[str | int, ...]) -> None:
    if name not in config.targets:
        raise fail(f"there is no target {name!r}", key=key, fix=nearest(name, config.targets))


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


def _check_writers(config: Config) -> None:
    """Two sources never write one table: their versions cannot be compared (H3)."""
    with_tables = PostgresTarget | SqlTarget | MemoryTarget | VectorTarget
    flows = [
        flow
        for flow in config.flows.values()
        if isinstance(config.targets[flow.target], with_tables)
        or (isinstance(config.targets[flow.target], RedisTarget) and flow.key is None)
    ]
    for index, flow in enumerate(flows):
        for other in flows[:index]:
            if flow.target != other.target:
                continue
            place, other_place = _place(config, flow), _place(config, other)
            if not all(may_meet(a, b) for a, b in zip(place, other_place, strict=True)):
                continue
            definite = place == other_place and "*" not in "".join(place)
            if flow.source != other.source or definite or may_meet(flow.source_pattern, other.source_pattern):
                table = ".".join(place)
                what = f"the flows {other.name!r} and {flow.name!r} both write {flow.target}.{table}"
                fix = "one table has one writer: send one of them to another schema or table"
                raise fail(what, key=("flows", flow.name, "to"), fix=fix)


def _place(config: Config, flow: Flow) -> tuple[str, str]:
    parts = flow.source_pattern.split(".", 2)
    schema, table = (parts[1], parts[2]) if len(parts) == 3 else ("*", parts[-1])
    place = flow.place(schema, table)
    if isinstance(config.targets[flow.target], SqlTarget):  # no schemas there, and names in any case
        return "main", place[1].lower()
    return place


def _check_operations(config: Config) -> None:
    for name, processor in config.processors.items():
        for index, pattern in enumerate(processor.inputs):
            _check_from(config, pattern, ("processors", name, "in", index))
    for name, rule in config.reconcile.items():
        if isinstance(rule.flow, InlineFlow):
            _check_from(config, rule.flow.source_pattern, ("reconcile", name, "flow", "from"))
            _check_target(config, rule.flow.to.split(".", 1)[0], ("reconcile", name, "flow", "to"))
        elif rule.flow not in config.flows:
            key = ("reconcile", name, "flow")
            raise fail(f"there is no flow {rule.flow!r}", key=key, fix=nearest(rule.flow, config.flows))
    jobs = config.schedules.jobs
    pulls = [n for n, s in config.sources.items() if isinstance(s, PullSource)]
    for name, job in jobs.items():
        place = ("schedules", "jobs", name)
        if job.pull is not None and job.pull not in pulls:
            what = f"there is no pull source {job.pull!r}"
            raise fail(what, key=(*place, "pull"), fix=nearest(job.pull, pulls))
        if job.reconcile is not None and job.reconcile not in config.reconcile:
            what = f"there is no reconcile {job.reconcile!r}"
            raise fail(what, key=(*place, "reconcile"), fix=nearest(job.reconcile, config.reconcile))
        for before in job.after:
            if before not in jobs or before == name:
                others = [j for j in jobs if j != name]
                raise fail(
                    f"there is no other job {before!r}", key=(*place, "after"), fix=nearest(before, others)
                )
    channels = config.alerts.channels
    for index, alert in enumerate(config.alerts.rules):
        for to in alert.to:
            if to not in channels:
                key5 = ("alerts", "rules", index, "to")
                raise fail(f"there is no channel {to!r}", key=key5, fix=nearest(to, channels))


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
