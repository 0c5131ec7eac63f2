"""What validates and is not built yet: refused by name where it would be used, never ignored.

A refusal stops the smallest part that needs the feature: a table, a flow, a source or a target.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.config.flows import (
    Flow,
    MemoryTarget,
    PostgresTarget,
    RedisTarget,
    SqlTarget,
    Target,
    VectorTarget,
)
from streamer.config.redis_entities import RedisSource
from streamer.config.root import Config
from streamer.config.sources import PostgresSource, QuerySource, Source, TableRule
from streamer.config.sql_urls import SQLITE, sql_backend
from streamer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """`path`: the key as written in the file, from its root; `what` and `fix` are sentences."""

    path: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.fix}"

    def error(self, where: str = "") -> ConfigError:
        return ConfigError(f"{self.path}: {self.what}", fix=self.fix, where=where)


# What a flow's keys may say by the kind of its target, the default first; a kind or key that is not named
# here takes the default only.
_DEFAULTS: dict[str, tuple[str, ...]] = {
    "unmapped": ("add",),
    "write": ("upsert",),
    "delete": ("apply",),
    "truncate": ("apply", "hold"),
    "version": ("columns",),
    "conflict": ("source",),
}
_MODES: dict[str, dict[str, tuple[str, ...]]] = {
    "postgres": {
        "unmapped": ("add", "ignore", "fail"),
        "write": ("upsert", "insert_only", "append"),
        "delete": ("apply", "soft", "ignore"),
        "truncate": ("apply", "hold", "ignore"),
        "version": ("columns", "side", "none"),
    },
    "redis": {
        "unmapped": ("add", "ignore", "fail"),
        "write": ("upsert", "insert_only", "append"),
        "delete": ("apply", "soft", "ignore"),
        "truncate": ("apply", "hold", "ignore"),
        "version": ("columns", "side"),
    },
    "sql": {
        "unmapped": ("add", "ignore", "fail"),
        "write": ("upsert", "insert_only", "append"),
        "delete": ("apply", "soft", "ignore"),
        "truncate": ("apply", "hold", "ignore"),
        "version": ("columns", "side", "none"),
    },
    "pgvector": {
        "unmapped": ("add", "ignore", "fail"),
        "write": ("upsert", "insert_only", "append"),
        "delete": ("apply", "soft", "ignore"),
        "truncate": ("apply", "hold", "ignore"),
        "version": ("columns",),
    },
    "memory": {
        "unmapped": ("add", "ignore", "fail"),
        "write": ("upsert", "insert_only", "append"),
        "delete": ("apply", "soft", "ignore"),
        "truncate": ("apply", "hold", "ignore"),
        "version": ("columns", "side", "none"),
    },
}
# Keys that are absent unless given, and which of them a kind takes.
_OPTIONS = {
    "columns": "renaming and casting columns",
    "owns": "a two-way flow",
    "as_": "a form of keys",
    "key": "a key of the target's own",
    "member": "a member's column",
    "score": "a score's column",
    "ttl_s": "an expiry",
    "text": "embedding text",
    "chunk": "embedding text",
    "embed": "embedding text",
    "dimensions": "embedding text",
}
# Keys that only flows to one kind of target have.
_OF_KIND = {
    "as_": "redis",
    "key": "redis",
    "member": "redis",
    "score": "redis",
    "ttl_s": "redis",
    "text": "pgvector",
    "chunk": "pgvector",
    "embed": "pgvector",
    "dimensions": "pgvector",
}
_TAKEN: dict[str, tuple[str, ...]] = {
    "postgres": ("columns",),
    "memory": ("columns",),
    "sql": ("columns",),
    "redis": ("columns", "as_", "key", "member", "score", "ttl_s"),
    "pgvector": ("columns", "text", "chunk", "embed", "dimensions"),
}


def _unbuilt(path: str, feature: str, fix: str) -> Unbuilt:
    return Unbuilt(path, f"{feature} is not built yet", fix)


def unbuilt_defaults(config: Config) -> list[Unbuilt]:
    """What of `defaults` stops every capture."""
    found = []
    defaults = config.defaults
    if defaults.encoding != "plain":
        path, feature = "defaults.encoding", f"the encoding {defaults.encoding!r}"
        found.append(_unbuilt(path, feature, "write encoding: plain, or remove the key"))
    if defaults.on_oversize != "fail":
        path, feature = "defaults.on_oversize", f"on_oversize: {defaults.on_oversize}"
        found.append(_unbuilt(path, feature, "write on_oversize: fail, or remove the key"))
    return found


def unbuilt_source(source: Source) -> list[Unbuilt]:
    """What stops this source; its tables' rules are judged one by one by unbuilt_table_rule."""
    path = f"sources.{source.name}"
    if isinstance(source, RedisSource):
        return []
    if isinstance(source, QuerySource):
        fix = f"remove the flows from {source.name}: a job of `reconcile` compares it without"
        return [_unbuilt(f"{path}.kind", "capturing a query", fix)]
    if not isinstance(source, PostgresSource):
        return [_unbuilt(f"{path}.kind", f"a {source.kind} source", f"remove {path} and the flows from it")]
    found = []
    if source.slot.on_stop != "alert":
        feature = f"on_stop: {source.slot.on_stop}"
        found.append(_unbuilt(f"{path}.slot.on_stop", feature, "write on_stop: alert, or remove the key"))
    if source.origin != "any":
        feature = f"origin: {source.origin}"
        found.append(_unbuilt(f"{path}.origin", feature, "write origin: any, or remove the key"))
    if source.snapshot.rate:
        feature = "a limit of the snapshot's rate"
        found.append(_unbuilt(f"{path}.snapshot.rate", feature, "write rate: 0, or remove the key"))
    if source.primary_url is not None:
        feature = "capture from a standby"
        fix = "give the primary's URL as `url`, and remove primary_url"
        found.append(_unbuilt(f"{path}.primary_url", feature, fix))
    return found


def is_only_compared(config: Config, source: Source) -> bool:
    """A query without a flow: reconcile runs it, and no process is for it."""
    return isinstance(source, QuerySource) and not any(f.source == source.name for f in config.flows.values())


def unbuilt_table_rule(source: PostgresSource, pattern: str) -> list[Unbuilt]:
    """What stops the tables that fit this key of `tables`."""
    rule = source.tables[pattern]
    if not isinstance(rule, TableRule):
        return []
    path = f'sources.{source.name}.tables."{pattern}"'
    features = {
        "exclude": ("leaving out columns", rule.exclude),
        "mask": ("masking columns", rule.mask),
        "where": ("a row filter", rule.where),
    }
    return [
        _unbuilt(f"{path}.{key}", feature, f"remove `{key}`, or write `exclude` in place of the rule")
        for key, (feature, value) in features.items()
        if value
    ]


def unbuilt_table(source: PostgresSource, schema: str, table: str) -> list[Unbuilt]:
    """What stops this one table."""
    pattern = source.pattern_for(schema, table)
    return unbuilt_table_rule(source, pattern) if pattern is not None else []


def unbuilt_target(target: Target) -> list[Unbuilt]:
    if isinstance(target, PostgresTarget | MemoryTarget | RedisTarget | VectorTarget):
        return []
    path = f"targets.{target.name}"
    if isinstance(target, SqlTarget):
        backend = sql_backend(target.url)
        fix = "write url: sqlite:///FILE, or kind: postgres with a Postgres database"
        return [] if backend == SQLITE else [_unbuilt(f"{path}.url", f"a sql target in {backend}", fix)]
    return [_unbuilt(f"{path}.kind", f"a {target.kind} target", f"remove {path} and the flows to it")]


def unbuilt_flow(config: Config, flow: Flow) -> list[Unbuilt]:
    """What stops this flow: its own keys, its target's kind, its source's kind."""
    path = f"flows.{flow.name}"
    found = []
    target = config.targets[flow.target]
    if unbuilt_target(target):
        found.append(_unbuilt(f"{path}.to", f"a {target.kind} target", f"remove {path}"))
    source = config.sources.get(flow.source)  # None: it is from a processor
    if source is not None and not isinstance(source, PostgresSource | RedisSource):
        found.append(_unbuilt(f"{path}.from", f"a {source.kind} source", f"remove {path}"))
    modes = _MODES.get(target.kind, _DEFAULTS)
    for key, default in _DEFAULTS.items():
        given = getattr(flow, key)
        if given.partition("(")[0] not in modes.get(key, default):
            fix = f"write {key}: {default[0]}, or remove the key"
            found.append(_unbuilt(f"{path}.{key}", f"{key}: {given}", fix))
    for attribute, feature in _OPTIONS.items():
        if getattr(flow, attribute) and attribute not in _TAKEN.get(target.kind, ()):
            key = Flow.model_fields[attribute].alias or attribute
            kind = _OF_KIND.get(attribute, target.kind)
            if kind != target.kind:
                what = f"{feature} belongs to a flow to a {kind} target, and {flow.target} is {target.kind}"
                found.append(Unbuilt(f"{path}.{key}", what, f"remove `{key}`"))
            else:
                found.append(_unbuilt(f"{path}.{key}", feature, f"remove `{key}`"))
    return found


def unbuilt_job(config: Config, name: str) -> list[Unbuilt]:
    """What stops this entry of `reconcile`."""
    job, path = config.reconcile[name], f"reconcile.{name}.flow"
    if isinstance(job.flow, str):
        return []
    flow = job.flow.named(name)
    source, target = config.sources.get(flow.source), config.targets[flow.target]
    if not isinstance(source, QuerySource):
        kind = "a processor" if source is None else f"a {source.kind} source"
        what = f"a flow written in place is of a query source, and {flow.source} is {kind}"
        return [Unbuilt(f"{path}.from", what, "name one of `flows` in its place")]
    if unbuilt_target(target) or not isinstance(target, PostgresTarget | SqlTarget):
        feature = f"comparing a query with a {target.kind} target"
        return [_unbuilt(f"{path}.to", feature, "name a table of a postgres or sqlite target")]
    return []


_BACKUP_FIX = (
    'call what makes it by `exec: "package.module:function"` in its place, as docs/schedules.md shows, or'
    " remove the step: a job does not run without its backup"
)


def unbuilt_scheduled(config: Config, name: str) -> list[Unbuilt]:
    """Of a job of `schedules:`; one that has any does not run."""
    path, job = f"schedules.jobs.{name}", config.schedules.jobs[name]
    found = []
    if job.pull is not None:
        found.append(
            _unbuilt(f"{path}.pull", "a job that pulls", f"fetch by a function, `exec`, or remove {path}")
        )
    for key, actions in (("before", job.before), ("on_done", job.on_done)):
        found += [
            _unbuilt(f"{path}.{key}.{index}.backup", "a step that makes a backup", _BACKUP_FIX)
            for index, action in enumerate(actions)
            if action.backup is not None
        ]
    return found


def unbuilt_sections(config: Config) -> list[Unbuilt]:
    """Whole parts of the file that nothing runs yet; they stop nothing else."""
    found = [unbuilt for name in config.reconcile for unbuilt in unbuilt_job(config, name)]
    found += [unbuilt for name in config.schedules.jobs for unbuilt in unbuilt_scheduled(config, name)]
    return found


def notes(config: Config) -> list[str]:
    """What is taken as written later and does less today, without harm: one sentence each, for the log."""
    found = []
    for source in config.sources.values():
        if isinstance(source, PostgresSource) and source.snapshot.readers > 1:
            path, readers = f"sources.{source.name}.snapshot.readers", source.snapshot.readers
            found.append(
                f"{path}: {readers} readers are asked for, and the snapshot reads with one in this release"
            )
    for flow in config.flows.values():
        if isinstance(config.targets[flow.target], SqlTarget) and flow.table_schema not in (None, "main"):
            found.append(
                f"flows.{flow.name}.to: SQLite has no schemas: {flow.table_schema!r} is left out, and tables"
                f" are named {flow.table or 'as in the source'}"
            )
    for target in config.targets.values():
        if isinstance(target, PostgresTarget) and target.origin is not None:
            path = f"targets.{target.name}.origin"
            found.append(
                f"{path}: rows are not marked with an origin in this release; one-way flows do not need it"
            )
    return found


def built_flows(config: Config, target: str) -> tuple[list[Flow], dict[str, list[Unbuilt]]]:
    """The target's flows that can run, and what stops each of the others."""
    run: list[Flow] = []
    stopped: dict[str, list[Unbuilt]] = {}
    for flow in config.flows.values():
        if flow.target == target:
            found = unbuilt_flow(config, flow)
            if found:
                stopped[flow.name] = found
            else:
                run.append(flow)
    return run, stopped
