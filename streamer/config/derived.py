"""Processors among the sources: what each reads and writes, which way rows take, and what is wrong with it.

Judged by the file alone: whether an import path leads anywhere, and how many partitions a topic has, is known
where the processor runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from streamer.changes.topics import clean
from streamer.config.base import fail, nearest
from streamer.config.operations import InlineFlow, Processor, Reconcile
from streamer.config.patterns import fits, is_pattern
from streamer.config.references import Names, Place, source_faults
from streamer.config.sources import PostgresSource, Source

if TYPE_CHECKING:
    from streamer.config.flows import Flow
    from streamer.config.root import Config

_OUT = re.compile(r"[A-Za-z0-9_-]{1,100}")


def processor_of(config: Config, flow: Flow) -> str | None:
    """The processor whose rows the flow takes; None: the flow is of a source."""
    return writer_of(config.processors, flow.source_pattern)


def writer_of(processors: Mapping[str, Processor], pattern: str) -> str | None:
    """The processor that writes what a pattern of topics names."""
    head = pattern.partition(".")[0]
    return next((name for name, processor in processors.items() if processor.out == head), None)


def upstream(processors: Mapping[str, Processor], name: str) -> list[str]:
    """The processors whose rows this one needs, each after those that it needs itself; the last is itself."""
    found: dict[str, None] = {}

    def look(name: str) -> None:
        for before in _reads(processors, name):
            if before not in found:
                look(before)
        found[name] = None

    look(name)
    return list(found)


def sources_of(processors: Mapping[str, Processor], name: str) -> list[str]:
    """The sources that its rows come from, by way of other processors, too."""
    patterns = (p for each in upstream(processors, name) for p in processors[each].inputs)
    return list(dict.fromkeys(p.partition(".")[0] for p in patterns if writer_of(processors, p) is None))


def _reads(processors: Mapping[str, Processor], name: str) -> list[str]:
    writers = (writer_of(processors, pattern) for pattern in processors[name].inputs)
    return [writer for writer in dict.fromkeys(writers) if writer is not None]


def circle(after: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that wait for each other, the first at the end once more; [] where there are none."""
    done: set[str] = set()

    def look(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for before in after[name]:
            if found := look(before, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in after if (found := look(name, []))), [])


# What is wrong


def processor_faults(
    names: Names,
    sources: Mapping[str, Source],
    processors: Mapping[str, Processor],
    targets: Collection[str],
    flows: Mapping[str, Flow],
) -> Iterator[PydanticCustomError]:
    taken: list[tuple[Place, str]] = [
        (("flows", name, "from"), flow.source_pattern) for name, flow in flows.items()
    ]
    for name, processor in processors.items():
        place: Place = ("processors", name)
        other = "source" if name in sources else "target" if name in targets else ""
        if other:
            what = f"a {other} has the name {name!r} too: both would share the topic {name}.dead_letters"
            yield fail(what, key=place, fix="rename the processor")
        yield from _out_faults(sources, processor.out, (*place, "out"))
        for index, pattern in enumerate(processor.inputs):
            at = (*place, "in", index)
            taken.append((at, pattern))
            faults = list(source_faults(names, pattern, at)) or list(_table_faults(sources, pattern, at))
            yield from faults
    for at, pattern in taken:
        writer = writer_of(processors, pattern)
        rest = pattern.partition(".")[2]
        shared = writer is not None and clean(writer) == processors[writer].out
        if shared and is_pattern(rest) and fits(rest, "dead_letters"):
            what = f"{pattern!r} takes the dead letters of the processor {writer!r}, too"
            yield fail(what, key=at, fix=f"name the processor otherwise than its `out`, {writer!r}")
    found = circle({name: _reads(processors, name) for name in processors})
    if found:
        way = " -> ".join(reversed(found))
        what = (
            "reads its own `out`" if len(found) == 2 else "a circle of processors: each waits for the others"
        )
        fix = "a row would go round for ever: take one of these out of `in`"
        yield fail(f"{what}: {way}", key=("processors", found[0], "in"), fix=fix)


def _out_faults(sources: Mapping[str, Source], out: str, at: Place) -> Iterator[PydanticCustomError]:
    if not _OUT.fullmatch(out):
        fix = "use letters, digits, '_' and '-', at most 100; after a dot comes the table of a router"
        yield fail(f"{out!r} is no name for a derived topic", key=at, fix=fix)
        return
    taken = next((name for name in sources if clean(name).lower() == out.lower()), None)
    if taken is not None:
        fix = "give the derived rows a name of their own"
        yield fail(f"topics of source {taken!r} begin with {out!r}", key=at, fix=fix)


def _table_faults(sources: Mapping[str, Source], pattern: str, at: Place) -> Iterator[PydanticCustomError]:
    """One table that is named, and that the capture of its source leaves out."""
    head, _, table = pattern.partition(".")
    source = sources.get(head)
    if not isinstance(source, PostgresSource) or is_pattern(table):
        return
    if source.rule_for(*table.split(".", 1)) is None:
        known = [name for name, rule in source.tables.items() if rule != "exclude"]
        what = f"{head!r} does not capture the table {table!r}"
        yield fail(what, key=at, fix=f"{nearest(table, known)}, or add it to sources.{head}.tables")


def sql_faults(
    sources: Mapping[str, Source],
    processors: Mapping[str, Processor],
    flows: Mapping[str, Flow],
    name: str,
    job: Reconcile,
) -> Iterator[PydanticCustomError]:
    """Of the query that a derived table is compared with."""
    place: Place = ("reconcile", name)
    if job.sql is None:
        if job.on is not None:
            yield fail("says where a query runs, and there is none", key=(*place, "on"), fix="write `sql`")
        return
    flow = None if isinstance(job.flow, InlineFlow) else flows.get(job.flow)
    writer = None if flow is None else writer_of(processors, flow.source_pattern)
    if writer is None:
        what = "a query is for rows that a processor derives, and this flow has none of these"
        yield fail(what, key=(*place, "sql"), fix="remove `sql`: the flow is compared with its source")
        return
    known = [each for each in sources_of(processors, writer) if isinstance(sources.get(each), PostgresSource)]
    if job.on is None and len(known) != 1:
        what = f"which source is the query for? {writer!r} derives its rows from {', '.join(known) or 'none'}"
        yield fail(f"{what} of kind postgres", key=(*place, "sql"), fix="write `on: SOURCE`")
    elif job.on is not None and job.on not in known:
        what = f"{writer!r} derives nothing from a postgres source {job.on!r}"
        yield fail(what, key=(*place, "on"), fix=nearest(job.on, known))


def query_source(config: Config, name: str) -> PostgresSource:
    """On whose server the query of a job runs, as sql_faults has checked it."""
    job = config.reconcile[name]
    assert isinstance(job.flow, str)
    writer = processor_of(config, config.flows[job.flow])
    assert writer is not None
    wanted = [job.on] if job.on is not None else sources_of(config.processors, writer)
    found = (config.sources[each] for each in wanted)
    return next(source for source in found if isinstance(source, PostgresSource))
