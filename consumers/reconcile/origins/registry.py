"""Which origin reads which kind of source."""

from __future__ import annotations

from consumers.reconcile.job import query_job
from consumers.reconcile.origins.base import Origin
from consumers.reconcile.origins.derived import DerivedOrigin
from consumers.reconcile.origins.postgres import PostgresOrigin
from consumers.reconcile.origins.query import QueryOrigin
from consumers.reconcile.origins.redis import RedisOrigin
from streamer.config import Config, Flow, PostgresSource, QuerySource, RedisSource


def make_origin(config: Config, flow: Flow, asked: str = "") -> Origin:
    """Of a flow that job has not refused. `asked`: the job of the config that is run, if one is."""
    job = query_job(config, flow, asked)
    if job is not None:
        return DerivedOrigin(config, flow, job)
    settings = config.sources[flow.source]
    if isinstance(settings, QuerySource):
        on = config.sources[settings.on]
        assert isinstance(on, PostgresSource)  # as the file is checked
        return QueryOrigin(settings, on)
    if isinstance(settings, RedisSource):
        return RedisOrigin(config, settings)
    assert isinstance(settings, PostgresSource)
    return PostgresOrigin(settings)
