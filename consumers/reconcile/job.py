"""Which flows a run compares, and as which jobs. Pure.

A name is a job of the config, or else a flow. Without names every flow is compared, each as the job that
the config has for it, if it has one (of a derived flow as each that has a query), and after them the flows
that jobs have in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consumers.reconcile.groups import Asked
from streamer.config import (
    Config,
    Flow,
    PostgresSource,
    PostgresTarget,
    QuerySource,
    RedisSource,
    RedisTarget,
    SqlTarget,
    VectorTarget,
    built_flows,
)
from streamer.config.base import no_such
from streamer.config.built import unbuilt_job
from streamer.config.derived import processor_of
from streamer.config.operations import InlineFlow, Reconcile, Repair
from streamer.config.patterns import is_pattern
from streamer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Job:
    """`refused`: why the flow cannot be compared; empty when it can. `why`: who wants a repair, if any.
    `counted`: what rows are counted by. `rate`: rows a second of each side, 0: no limit; `max_lag_s`: the lag
    of the flow from which on the comparison waits. `processor`: that derives the flow's rows, if one does.
    """

    name: str
    flow: Flow
    threshold: float
    log: Path | None
    refused: str = ""
    repair: Repair = field(default_factory=Repair)
    why: str = ""
    counted: Asked = field(default_factory=Asked)
    rate: float = 0.0
    max_lag_s: float | None = None
    processor: str = ""


def jobs_of(config: Config, names: Sequence[str]) -> list[Job]:
    """Raises ConfigError for a name that is not there, or a job that asks for what is not built."""
    if not names:
        own = [
            _own_job(config, name) for name, job in config.reconcile.items() if not isinstance(job.flow, str)
        ]
        of_flows = [
            _job(config, name, flow) for flow in config.flows.values() for name in _jobs_for(config, flow)
        ]
        return of_flows + own
    known = [*config.reconcile, *config.flows]
    found: list[Job] = []
    for name in dict.fromkeys(names):
        if name in config.reconcile:
            wanted = config.reconcile[name].flow
            unbuilt = unbuilt_job(config, name)
            if unbuilt:
                raise unbuilt[0].error(str(config.path))
            found.append(
                _job(config, name, config.flows[wanted])
                if isinstance(wanted, str)
                else _own_job(config, name)
            )
        elif name in config.flows:
            found.append(_job(config, None, config.flows[name]))
        else:
            raise no_such("job or flow", name, dict.fromkeys(known), config.path)
    return found


def _jobs_for(config: Config, flow: Flow) -> list[str | None]:
    """Each with a query of its own, as each proves something else; of others the last one."""
    names = [name for name, job in config.reconcile.items() if job.flow == flow.name]
    queries: list[str | None] = [name for name in names if config.reconcile[name].sql is not None]
    return queries or [names[-1] if names else None]


def _job(config: Config, name: str | None, flow: Flow) -> Job:
    why_not = refused(config, flow)
    if name is None:
        return Job(flow.name, flow, 0.0, None, why_not, processor=processor_of(config, flow) or "")
    return _as_asked(config, name, flow, why_not)


def _own_job(config: Config, name: str) -> Job:
    """Of a flow that the job has in place."""
    inline = config.reconcile[name].flow
    assert isinstance(inline, InlineFlow)
    unbuilt = unbuilt_job(config, name)
    return _as_asked(config, name, inline.named(name), str(unbuilt[0]) if unbuilt else "")


def _as_asked(config: Config, name: str, flow: Flow, why_not: str) -> Job:
    settings = config.reconcile[name]
    return Job(
        name,
        flow,
        settings.threshold,
        settings.log,
        why_not,
        settings.repair,
        f"reconcile.{name}.repair.mode: {settings.repair.mode}",
        _counted(settings),
        settings.limits.rate,
        settings.limits.max_lag_s,
        processor_of(config, flow) or "",
    )


def _counted(settings: Reconcile) -> Asked:
    windows = settings.windows
    if windows is None:
        return Asked(settings.group_by)
    return Asked(settings.group_by, windows.column, windows.sizes_s)


def refused(config: Config, flow: Flow) -> str:
    """Why a flow cannot be compared; empty when it can."""
    stopped = built_flows(config, flow.target)[1].get(flow.name)
    if stopped:
        return str(stopped[0])
    processor, target = processor_of(config, flow), config.targets[flow.target]
    source = config.sources.get(flow.source)
    if processor is not None:
        if query_job(config, flow) is None:
            return (
                f"{processor} derives its rows, and nothing says what they should be: write the query as"
                f" `sql:` of a job, `reconcile: {{{flow.name}: {{flow: {flow.name}, sql: SELECT ...}}}}`"
            )
        if is_pattern(flow.source_pattern):
            return "one query is not for several tables: give each a flow of its own"
    elif not isinstance(source, PostgresSource | RedisSource):
        assert source is not None  # as the file is checked
        return f"comparing a {source.kind} source is not built yet"
    if not isinstance(target, PostgresTarget | RedisTarget | SqlTarget | VectorTarget):
        return f"comparing a {target.kind} target is not built yet"
    return ""


def query_job(config: Config, flow: Flow, asked: str = "") -> str | None:
    """The job that says what a derived flow's rows should be: the one that is asked for, if it has a query,
    else the flow's own, or one of another flow of the same rows."""
    jobs = {
        name: config.flows[job.flow]
        for name, job in config.reconcile.items()
        if job.sql is not None and isinstance(job.flow, str)
    }
    own = [name for name, its in jobs.items() if its.name == flow.name]
    if asked in own:
        return asked
    same = [name for name, its in jobs.items() if its.source_pattern == flow.source_pattern]
    return next(iter(own + same), None)


def query_of(config: Config, flow: Flow, asked: str) -> str:
    """What the flow is compared with instead of a table; empty: with a table."""
    job = query_job(config, flow, asked)
    if job is not None:
        return config.reconcile[job].sql or ""
    source = config.sources.get(flow.source)
    return source.sql if isinstance(source, QuerySource) else ""


def check_alone(jobs: Sequence[Job], option: str) -> None:
    """For options that are about one flow's columns."""
    if len({job.flow.name for job in jobs}) != 1:
        raise ConfigError(
            f"{option} is about one flow's columns, and this run has {len(jobs)} flows",
            fix="name the flow: `tailrace reconcile FLOW ...`",
        )
