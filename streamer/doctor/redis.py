"""The checks of a Redis source: reachable, what it is, notifications, and every right that capture needs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from hiredis import ReplyError

from streamer.config import RedisSource
from streamer.doctor.check import Findings
from streamer.errors import ConfigError, TailraceError
from streamer.redis.address import place
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.entities import Entities
from streamer.redis.gaps import Gaps
from streamer.redis.notifications import SETTING, Watch, missing_classes, needed_classes, read_setting
from streamer.redis.replies import Command
from streamer.redis.reread import Reread
from streamer.redis.signs import TRACKED_PREFIX, read_look
from streamer.redis.source import types_of

CANARY = b"__tailrace__:doctor"  # within the channels that capture's own messages use
PROBE = b"tailrace-doctor"  # stands for every part of a key's name: no such key is there

# What is asked of a key of each type, beside the re-read script.
_READS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "string": (("GET",),),
    "hash": (("HGETALL",), ("HSCAN", "0"), ("HMGET", "f")),
    "set": (("SMEMBERS",), ("SSCAN", "0"), ("SMISMEMBER", "m")),
    "zset": (("ZRANGE", "0", "0"), ("ZSCAN", "0"), ("ZMSCORE", "m"), ("ZSCORE", "m")),
    "list": (("LRANGE", "0", "0"),),
    "stream": (("XLEN",), ("XRANGE", "-", "+", "COUNT", "1")),
}
_INFO = ("server", "replication", "stats", "keyspace")


async def check_redis(findings: Findings, source: RedisSource) -> None:
    """Changes nothing on the server."""
    url = source.url.get_secret_value()
    entities = Entities(source)
    try:
        async with connect(url, application="tailrace-doctor") as line:
            name = line.server.get("server", "redis").capitalize()
            findings.ok("reachable", f"{place(url)}, {name} {line.server.get('version', '')}")
            await _server(findings, line, entities)
            await _notifications(findings, line, source, needed_classes(types_of(source)))
            await _rights(findings, line, source, entities)
        async with connect(url, application="tailrace-doctor") as line:
            await _subscription(findings, line, entities)
    except ConfigError as error:
        findings.error("login", error)
    except TailraceError as error:
        findings.error("reachable", error)


async def _server(findings: Findings, line: RedisConnection, entities: Entities) -> None:
    replies = await line.pipeline([("INFO", section) for section in _INFO], errors=True)
    for reply in replies:
        if isinstance(reply, ReplyError):
            findings.error("rights", _said(line, reply, ("INFO",)))
            return
    look = read_look("\n".join(reply.decode("utf-8", "replace") for reply in replies), None, 0)
    if look.role == "slave":
        what = "a replica: what it has not received yet is not seen, and its failover is a gap"
        if look.link == "down":
            findings.warn(
                "role", "a replica that has lost its primary: what it holds is old", "mend the link"
            )
        else:
            findings.note("role", what)
    else:
        findings.ok("role", "a primary, no Cluster")
    keys = sum(look.databases.get(db, 0) for db in entities.globs())
    databases = ", ".join(map(str, entities.globs()))
    findings.ok("keys", f"{keys:,} keys in database {databases}; {len(entities.by_name)} entities")


async def _notifications(findings: Findings, line: RedisConnection, source: RedisSource, needed: str) -> None:
    setting = await read_setting(line)
    if setting is None:
        what = f"{SETTING} cannot be read by this user"
        if source.notifications == "manage":
            fix = f"let the user: ACL SETUSER {line.user} +config|get +config|set"
            findings.fail("notifications", what, f"{fix}; or write notifications: check")
        else:
            fix = f"let the user read it: ACL SETUSER {line.user} +config|get"
            findings.warn("notifications", f"{what}: nobody notices when events are switched off", fix)
        return
    missing = missing_classes(setting, needed)
    if not missing:
        findings.ok("notifications", f"{SETTING} is {setting!r}")
    elif source.notifications == "manage":
        what = f"{SETTING} is {setting!r}; capture adds {missing}, as notifications: manage allows"
        findings.note("notifications", what)
    else:
        findings.fail(
            "notifications",
            f"{SETTING} is {setting!r}, which lacks {missing}",
            "set it, and write it into the server's file",
            [f"CONFIG SET {SETTING} {setting + missing}", "CONFIG REWRITE"],
        )


async def _rights(findings: Findings, line: RedisConnection, source: RedisSource, entities: Entities) -> None:
    """Each command once, on keys that are not there: nothing is read and nothing written."""
    commands: list[Command] = [
        ("SCAN", "0", "COUNT", "1"),
        ("TIME",),
        ("PUBLISH", CANARY, ""),
        ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", TRACKED_PREFIX),
    ]
    for name, config in source.entities.items():
        entity = entities.by_name[name]
        reads = {config.pattern: config.redis_type} if config.pattern is not None else {}
        for column in config.columns:
            reads.update({pattern: kind for kind, pattern in config.column(column).keys.items()})
        for kind in reads.values():
            glob = entity.pattern.glob if hasattr(entity, "pattern") else b"*"
            key = glob.replace(b"*", PROBE)
            commands += [(read[0], key, *read[1:]) for read in _READS["string" if kind == "json" else kind]]
    replies = await line.pipeline(commands, errors=True)
    refused: dict[str, TailraceError] = {}
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ReplyError) and not str(reply).startswith("WRONGTYPE"):
            refused.setdefault(str(command[0]), _said(line, reply, command))
    try:
        await Reread(line).read([(line.db, PROBE)])
    except TailraceError as error:
        refused.setdefault("EVALSHA", error)
    for found in refused.values():
        findings.error("rights", found)
    if not refused:
        findings.ok("rights", "every command that capture needs")


async def _subscription(findings: Findings, line: RedisConnection, entities: Entities) -> None:
    watch = Watch(line, entities.globs(), Gaps(), canary=CANARY, clock_s=time.monotonic)
    try:
        await watch.start()
    except TailraceError as error:
        findings.error("subscription", error)
        return
    findings.ok("subscription", "the keys' channels may be subscribed to")


def _said(line: RedisConnection, reply: ReplyError, command: Command) -> TailraceError:
    error = line.translate(reply, command)
    assert isinstance(error, TailraceError)
    return error
