"""Which store reads which kind of target."""

from __future__ import annotations

from consumers.reconcile.sides import sqlite
from consumers.reconcile.stores.base import Store
from consumers.reconcile.stores.postgres import PostgresStore
from consumers.reconcile.stores.redis import RedisStore
from consumers.reconcile.stores.sqlite import SqliteStore
from consumers.reconcile.stores.vectors import VectorStore
from streamer.config import Config, Flow, PostgresTarget, RedisTarget, SqlTarget, VectorTarget, sqlite_path


def make_store(config: Config, flow: Flow) -> Store:
    """Of a flow that job has not refused."""
    target = config.targets[flow.target]
    if isinstance(target, PostgresTarget):
        return PostgresStore(target.url.get_secret_value())
    if isinstance(target, VectorTarget):
        return VectorStore(target.url.get_secret_value())
    if isinstance(target, RedisTarget):
        flows = [each for each in config.flows.values() if each.target == flow.target]
        return RedisStore(target.url.get_secret_value(), flows)
    assert isinstance(target, SqlTarget)
    path = sqlite_path(target.url)
    return SqliteStore(sqlite.Session(path, f"target sqlite {path}"))
