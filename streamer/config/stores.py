"""Which store a URL names, as far as its text tells: two targets never share one (H30), and two configs of
one name are told apart. No I/O but links of files."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import realpath
from typing import assert_never

from streamer.config.conninfo import parts_of
from streamer.config.flows import MemoryTarget, PostgresTarget, RedisTarget, SqlTarget, Target, VectorTarget
from streamer.config.redis_entities import RedisSource
from streamer.config.sources import PostgresSource, Source
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


def place_of(store: Source | Target, host: str) -> str:
    """Where a store is, in the words of its URL: `kind://server:port/database`, without who logs in and with
    what. Empty: the URL does not tell. `host`: this machine's name, in place of localhost."""
    match store:
        case PostgresSource() | PostgresTarget() | VectorTarget():
            parts = parts_of(store.url.get_secret_value())
            _, servers, _ = _of_postgres(parts)
            assert isinstance(servers, tuple)
            places = ",".join(f"{_seen_from(host, name)}:{port}" for name, port in servers)
            return f"postgres://{places}/{parts['dbname']}" if "dbname" in parts else ""
        case RedisSource() | RedisTarget():
            url = read_url(store.url.get_secret_value())
            if not isinstance(url, ServerUrl):
                return ""
            place = f"{host}{realpath(url.path)}" if url.path else f"{_seen_from(host, url.host)}:{url.port}"
            return f"redis://{place}/{url.db}"
        case SqlTarget():
            is_file = sql_backend(store.url) == SQLITE
            return f"sqlite://{host}{realpath(sqlite_path(store.url))}" if is_file else ""
    return ""


def database_of(place: str) -> tuple[str, str]:
    """What of a place is the same by whatever name its server is called: the kind, and the database."""
    kind, _, rest = place.partition("://")
    return kind, rest.rpartition("/")[2]


def _seen_from(host: str, name: str) -> str:
    is_here = not name or name[0] in "/@" or _host(name) == _LOOPBACK[0]
    return host if is_here else _host(name)


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
