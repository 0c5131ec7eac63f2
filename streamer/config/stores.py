"""Which store a target's URL names, as far as its text tells: two targets never share one (H30). No I/O but
links of files."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import realpath
from typing import assert_never

from streamer.config.conninfo import parts_of
from streamer.config.flows import MemoryTarget, PostgresTarget, RedisTarget, SqlTarget, Target, VectorTarget
from streamer.config.sql_urls import SQLITE, sql_backend, sqlite_path
from streamer.redis.url import ServerUrl, read_url

Store = tuple[object, ...]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_POSTGRES_PORT = "5432"
_ANOTHER = {
    "sql": "another file",
    "redis": "another database of the server, as .../1",
    "pgvector": "another database",
    "postgres": "another database",
}


def store_of(target: Target) -> Store | None:
    """Equal where two URLs name one store, whoever logs in; None: it tells nothing."""
    match target:
        case PostgresTarget() | VectorTarget():
            return _of_postgres(parts_of(target.url.get_secret_value()))
        case RedisTarget():
            url = read_url(target.url.get_secret_value())
            if not isinstance(url, ServerUrl):
                return None
            place = (realpath(url.path),) if url.path is not None else (_host(url.host), url.port)
            return "redis", *place, url.db
        case SqlTarget():
            return ("file", realpath(sqlite_path(target.url))) if sql_backend(target.url) == SQLITE else None
        case MemoryTarget():
            return None
    assert_never(target)


def _of_postgres(parts: dict[str, str]) -> Store:
    hosts = (parts.get("hostaddr") or parts.get("host") or "").split(",")
    ports = (parts.get("port") or _POSTGRES_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = zip(map(_host, hosts), (port or _POSTGRES_PORT for port in ports), strict=False)
    return "postgres", tuple(sorted(places)), parts.get("dbname") or parts.get("user")


def _host(name: str) -> str:
    return _LOOPBACK[0] if name.lower() in _LOOPBACK else name.lower()


def first_shared(stores: Iterable[tuple[str, Store | None]]) -> tuple[str, str] | None:
    """Of (target, store): two targets with one store, as they come."""
    known: dict[Store, str] = {}
    for name, store in stores:
        if store is None:
            continue
        other = known.setdefault(store, name)
        if other != name:
            return other, name
    return None


def apart(one: str, other: str, kind: str) -> str:
    """What to do about two targets of one store. `kind`: of the second."""
    return (
        f"a store is one target's: send the flows of both to one of them (`to: {one}`), or give {other}"
        f" {_ANOTHER[kind]}"
    )


def if_shared(bound: str, group: str, kind: str) -> str:
    """The same where a store says that it belongs to another group, which may be that of another target of
    the same file; empty when it is not."""
    name, _, target = group.rpartition(".")
    if not bound.startswith(f"{name}."):
        return ""
    other = bound.removeprefix(f"{name}.")
    return f"where {other} and {target} are both in the file: {apart(other, target, kind)}; otherwise "
