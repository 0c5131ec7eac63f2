"""The order of the checks: sources first, all at once; then Kafka and targets with what they said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from streamer.changes.topics import data_topic, entity_topic
from streamer.config import (
    Config,
    PostgresSource,
    PostgresTarget,
    RedisSource,
    RedisTarget,
    SqlTarget,
    VectorTarget,
    is_only_compared,
    notes,
    unbuilt_defaults,
    unbuilt_sections,
    unbuilt_source,
    unbuilt_target,
)
from streamer.config.stores import apart, first_shared
from streamer.doctor.bound import bound_stores
from streamer.doctor.check import Check, Findings, Report
from streamer.doctor.kafka import check_kafka
from streamer.doctor.redis import check_redis
from streamer.doctor.redis_target import check_redis_target
from streamer.doctor.source import SourceFacts, check_source
from streamer.doctor.sql import check_sql
from streamer.doctor.target import check_target
from streamer.errors import TailraceError

T = TypeVar("T")

SUBJECT_DEADLINE_S = 60.0  # hundreds of tables take a second; beyond this the server has other troubles


async def examine(config: Config) -> Report:
    """Try everything that the config needs. Never raises for what is wrong outside; changes nothing."""
    head = Findings("config")
    _config(head, config)
    sources = {s.name: s for s in config.sources.values() if isinstance(s, PostgresSource)}
    targets = {t.name: t for t in config.targets.values() if isinstance(t, PostgresTarget | VectorTarget)}
    files = {t.name: t for t in config.targets.values() if isinstance(t, SqlTarget)}
    caches = {s.name: s for s in config.sources.values() if isinstance(s, RedisSource)}
    of_sources = {name: Findings(f"source {name}") for name in (*sources, *caches)}
    of_kafka = Findings("kafka")
    stores = {t.name: t for t in config.targets.values() if isinstance(t, RedisTarget)}
    of_targets = {name: Findings(f"target {name}") for name in (*targets, *files, *stores)}

    bound, answers = await asyncio.gather(
        bound_stores(config, of_targets),
        asyncio.gather(
            *(
                _guarded(of_sources[name], check_source(of_sources[name], source))
                for name, source in sources.items()
            )
        ),
    )
    facts: dict[str, SourceFacts] = {n: a for n, a in zip(sources, answers, strict=True) if a is not None}
    topics = [data_topic(name, t.schema, t.name) for name, found in facts.items() for t in found.tables]
    topics += [entity_topic(name, entity) for name, source in caches.items() for entity in source.entities]
    await asyncio.gather(
        *(
            _guarded(of_sources[name], check_redis(of_sources[name], config, source))
            for name, source in caches.items()
        ),
        _guarded(of_kafka, check_kafka(of_kafka, config, topics)),
        *(
            _guarded(of_targets[name], check_target(of_targets[name], config, target, facts, bound.get(name)))
            for name, target in targets.items()
        ),
        *(
            _guarded(of_targets[name], check_sql(of_targets[name], config, file, facts, bound.get(name)))
            for name, file in files.items()
        ),
        *(
            _guarded(
                of_targets[name],
                check_redis_target(of_targets[name], config, store, facts, bound.get(name)),
            )
            for name, store in stores.items()
        ),
    )
    _stores(config, of_targets)
    checks: list[Check] = []
    for findings in (head, *of_sources.values(), of_kafka, *of_targets.values()):
        checks += findings.checks
    return Report(tuple(checks))


def _stores(config: Config, of_targets: Mapping[str, Findings]) -> None:
    """Two targets that are one store, as only the servers could tell."""
    used = {flow.target for flow in config.flows.values()}
    shared = first_shared((name, found.store) for name, found in of_targets.items() if name in used)
    if shared is not None:
        other, name = shared
        what = f"this is the store of target {other!r}, too"
        of_targets[name].fail("store", what, apart(other, name, config.targets[name].kind))


async def _guarded(findings: Findings, work: Awaitable[T]) -> T | None:
    """A subject's checks with a deadline; an error that no check expected becomes one more finding."""
    try:
        async with asyncio.timeout(SUBJECT_DEADLINE_S):
            return await work
    except TimeoutError:
        findings.fail(
            "deadline", f"no answer within {SUBJECT_DEADLINE_S:.0f} s", "look into the server's log"
        )
    except TailraceError as error:
        findings.error("server", error)
    return None


def _config(findings: Findings, config: Config) -> None:
    findings.ok("file", f"{config.path} is valid")
    for unbuilt in unbuilt_defaults(config):
        findings.fail("config", f"{unbuilt.path}: {unbuilt.what}", unbuilt.fix)
    for source in config.sources.values():
        if not isinstance(source, PostgresSource | RedisSource) and not is_only_compared(config, source):
            for unbuilt in unbuilt_source(source):
                findings.warn("config", f"{unbuilt.path}: {unbuilt.what}; it does not run", unbuilt.fix)
    for target in config.targets.values():
        for unbuilt in unbuilt_target(target):
            findings.warn("config", f"{unbuilt.path}: {unbuilt.what}; its flows do not run", unbuilt.fix)
    for unbuilt in unbuilt_sections(config):
        findings.warn("config", f"{unbuilt.path}: {unbuilt.what}; it does not run", unbuilt.fix)
    for note in notes(config):
        findings.note("config", note)
    if not any(isinstance(s, PostgresSource | RedisSource) for s in config.sources.values()):
        findings.fail("config", "no source that can run today", "add one of kind: postgres or redis")
