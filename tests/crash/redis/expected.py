"""What the topics ought to hold, read straight from Redis: a reading of game.ENTITIES of the judge's own.

Uses nothing of the capture. Rows are compared in the form that `plain` of the fold gives: a jsonb column as
the value that its text stands for (a `json` document as it is spelt), a time in milliseconds, a score as
Python's float. The server must be quiet, and expiries that are near must have come to pass.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis.asyncio as aioredis

from tests.crash.redis import asking
from tests.crash.redis.game import DAILY, DATABASES, NAMES, WEEKLY

KEYS_AT_ONCE = 500
_INTEGER = re.compile(rb"[+-]?[0-9]{1,18}").fullmatch

RowKey = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(slots=True)
class Expected:
    """By entity. `anything`: rows that keep what was published last, as their value cannot be used;
    `unread`: entities of which that is so in a whole database.
    `logs`: (db, id) of streams; entries that were trimmed stay in their topic."""

    rows: dict[str, dict[RowKey, Row]] = field(default_factory=dict)
    anything: set[tuple[str, RowKey]] = field(default_factory=set)
    unread: set[tuple[str, int]] = field(default_factory=set)
    logs: dict[RowKey, Log] = field(default_factory=dict)


class Log(NamedTuple):
    """Of a stream: the id of its first entry, and how many it has lost in front of that one, by its own
    count. The game deletes none by its id."""

    first: tuple[int, ...]
    lost: int


@dataclass(slots=True)
class _Key:
    name: bytes
    type: str
    expires_ms: int | None
    value: Any
    added: int  # entries that a stream ever had


async def read(url: str) -> Expected:
    expected = Expected()
    for db in DATABASES:
        client = asking.client(urlsplit(url)._replace(path=f"/{db}").geturl())
        try:
            keys = {key.name: key async for key in _keys(client)}
        finally:
            await client.aclose()
        for key in keys.values():
            family, _, part = key.name.partition(b":")
            found = _FAMILIES.get(family)
            if found is not None and part and found.type == key.type:
                found.add(expected, db, part, key)
        _leaders(expected, db, keys)
    return expected


async def _keys(client: aioredis.Redis) -> AsyncIterator[_Key]:
    names = sorted({name async for name in client.scan_iter(count=1000)})
    for at in range(0, len(names), KEYS_AT_ONCE):
        some = names[at : at + KEYS_AT_ONCE]
        async with client.pipeline(transaction=False) as pipe:
            for name in some:
                pipe.type(name)
                pipe.pexpiretime(name)
            heads = await pipe.execute()
            types = [head.decode() for head in heads[::2]]
            for name, kind in zip(some, types, strict=True):
                _READ[kind](pipe, name)
            values = await pipe.execute()
            streams = [name for name, kind in zip(some, types, strict=True) if kind == "stream"]
            for name in streams:
                pipe.xinfo_stream(name)
            # One may have expired meanwhile: then all of it is read again.
            infos = await pipe.execute(raise_on_error=False)
        added = {
            name: info["entries-added"]
            for name, info in zip(streams, infos, strict=True)
            if not isinstance(info, aioredis.RedisError)
        }
        for name, kind, expires_ms, value in zip(some, types, heads[1::2], values, strict=True):
            if kind != "none":
                yield _Key(name, kind, expires_ms if expires_ms > 0 else None, value, added.get(name, 0))


_READ: Mapping[str, Callable[[Any, bytes], Any]] = {
    "string": lambda pipe, name: pipe.get(name),
    "hash": lambda pipe, name: pipe.hgetall(name),
    "zset": lambda pipe, name: pipe.zrange(name, 0, -1, withscores=True),
    "set": lambda pipe, name: pipe.smembers(name),
    "list": lambda pipe, name: pipe.lrange(name, 0, -1),
    "stream": lambda pipe, name: pipe.xrange(name),
    "none": lambda pipe, _name: pipe.ping(),
}


def text(raw: bytes) -> str:
    """As docs/redis.md says: UTF-8 as it is; what is not, holds a zero byte or begins with \\x, as hex."""
    try:
        found = raw.decode()
    except UnicodeDecodeError:
        return "\\x" + raw.hex()
    return "\\x" + raw.hex() if found.startswith("\\x") or "\0" in found else found


def id_of(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


# One function an entity: the rows of one key


def _raw(key: _Key) -> Row:
    return {"value": text(key.value), "until": key.expires_ms}


def _bin(key: _Key) -> Row:
    return {"value": base64.b64encode(key.value).decode()}


def _doc(key: _Key) -> Row | None:
    return None if _document(key.value) is _BROKEN else {"value": key.value.decode()}


def _profile(key: _Key) -> Row | None:
    found = _document(key.value)
    return {"age": found.get("age"), "name": found.get("name")} if isinstance(found, dict) else None


def _player(key: _Key) -> Row | None:
    score, name = key.value.get(b"score"), key.value.get(b"name")
    if score is not None and not _INTEGER(score):
        return None
    return {
        "score": None if score is None else int(score),
        "name": None if name is None else text(name),
        "until": key.expires_ms,
    }


_BROKEN = object()


def _document(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except ValueError:
        return _BROKEN


Members = list[tuple[Any, Row]]


@dataclass(frozen=True, slots=True)
class _Family:
    """`row`: of the whole key, None: its value cannot be used; or `members`: (member, what is behind it)."""

    entity: str
    type: str
    row: Callable[[_Key], Row | None] | None = None
    members: Callable[[_Key], Members] | None = None
    member: str = ""  # its column
    name: Callable[[bytes], Any] = text

    def add(self, expected: Expected, db: int, part: bytes, key: _Key) -> None:
        rows = expected.rows.setdefault(self.entity, {})
        identity = db, self.name(part)
        head = {"db": db, "id": self.name(part)}
        if self.type == "stream" and key.value:  # empty: it has expired, and all is read again
            first = id_of(key.value[0][0].decode())
            expected.logs[identity] = Log(first, key.added - len(key.value))
        if self.members is not None:
            for member, rest in self.members(key):
                rows[*identity, member] = {**head, self.member: member, **rest}
            return
        assert self.row is not None
        row = self.row(key)
        if row is None:
            expected.anything.add((self.entity, identity))
        else:
            rows[identity] = {**head, **row}


_FAMILIES = {
    b"raw": _Family("raws", "string", _raw),
    b"bin": _Family("bins", "string", _bin, name=lambda part: base64.b64encode(part).decode()),
    b"doc": _Family("docs", "string", _doc),
    b"prof": _Family("profiles", "string", _profile),
    b"player": _Family("players", "hash", _player),
    b"card": _Family("cards", "hash", lambda k: {"value": {text(f): text(v) for f, v in k.value.items()}}),
    b"field": _Family(
        "fields", "hash", None, lambda k: [(text(f), {"v": text(v)}) for f, v in k.value.items()], "f"
    ),
    b"board": _Family(
        "boards", "zset", None, lambda k: [(text(m), {"points": s}) for m, s in k.value], "user_id"
    ),
    b"rank": _Family("ranks", "zset", lambda k: {"value": {text(m): s for m, s in k.value}}),
    b"tag": _Family(
        "tags", "set", None, lambda k: [(text(m), {"until": k.expires_ms}) for m in k.value], "tag"
    ),
    b"pool": _Family("pools", "set", lambda k: {"value": [text(m) for m in sorted(k.value)]}),
    b"queue": _Family(
        "queues", "list", None, lambda k: [(i, {"v": text(v)}) for i, v in enumerate(k.value)], "i"
    ),
    b"line": _Family("lines", "list", lambda k: {"value": [text(v) for v in k.value]}),
    b"log": _Family(
        "logs",
        "stream",
        None,
        lambda k: [(i.decode(), {"content": {text(f): text(v) for f, v in e.items()}}) for i, e in k.value],
        "entry",
    ),
}


def _leaders(expected: Expected, db: int, keys: Mapping[bytes, _Key]) -> None:
    """The pivot: who is on a board, with what other keys say of him."""
    rows = expected.rows.setdefault("leaders", {})
    if any(name in keys and keys[name].type != "zset" for name in (DAILY, WEEKLY)):
        expected.unread.add(("leaders", db))
        return
    boards = [dict(keys[name].value) if name in keys else {} for name in (DAILY, WEEKLY)]
    names = keys[NAMES].value if NAMES in keys else {}
    for name, kind in ((b"user", "hash"), (b"note", "string")):
        for key in keys.values():
            family, _, user = key.name.partition(b":")
            if family == name and key.type != kind and b":" not in user:
                expected.anything.add(("leaders", (db, text(user))))
    for user in {*boards[0], *boards[1]}:
        apart = b":" in user  # such an id is in no key's name
        card = None if apart else keys.get(b"user:" + user)
        note = None if apart else keys.get(b"note:" + user)
        if ("leaders", (db, text(user))) in expected.anything:
            continue
        called = card.value.get(b"name") if card is not None else None
        nick = names.get(user)
        rows[db, text(user)] = {
            "db": db,
            "user_id": text(user),
            "daily": boards[0].get(user),
            "weekly": boards[1].get(user),
            "name": None if called is None else text(called),
            "nick": None if nick is None else text(nick),
            "note": None if note is None else text(note.value),
        }
