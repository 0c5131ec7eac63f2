"""The checks of a Redis source: reachable, what it is, notifications, and every right that capture needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hiredis import ReplyError

from streamer.config import Config, RedisSource
from streamer.doctor.check import Findings
from streamer.errors import ConfigError, TailraceError
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.entities import Entities, types_of
from streamer.redis.notifications import (
    SETTING,
    canary_channel,
    channel_pattern,
    missing_classes,
    needed_classes,
    read_setting,
)
from streamer.redis.patterns import KeyPattern
from streamer.redis.replies import READ, Arg, Command, Denied, code, told
from streamer.redis.reread import Reread
from streamer.redis.rights import capture_rights
from streamer.redis.signs import TRACKED_PREFIX, read_look

PROBE = b"tailrace-doctor"  # stands for every part of a key's name: no such key is there
_KEY = "key"

# How a command is asked whether it may be run, unless with a key alone: `key` is one of the first pattern,
# and is not there; CONFIG SET gets a setting that no server has.
_PROBES: Mapping[str, tuple[Arg, ...]] = {
    "client|tracking": ("ON", "BCAST", "PREFIX", TRACKED_PREFIX),
    "config|get": (SETTING,),
    "config|set": ("tailrace-doctor", ""),
    "info": ("server",),
    "time": (),
    "scan": ("0", "COUNT", "1"),
    "eval": ("return 0", "0"),
    "eval_ro": ("return 0", "0"),
    "hscan": (_KEY, "0"),
    "hmget": (_KEY, "f"),
    "hget": (_KEY, "f"),
    "sscan": (_KEY, "0"),
    "smismember": (_KEY, "m"),
    "zrange": (_KEY, "0", "0"),
    "zmscore": (_KEY, "m"),
    "zscan": (_KEY, "0"),
    "zscore": (_KEY, "m"),
    "lrange": (_KEY, "0", "0"),
    "xrange": (_KEY, "-", "+", "COUNT", "1"),
}
# The session itself, the re-read and the channels ask these.
_ELSEWHERE = frozenset(
    (
        "hello",
        "select",
        "multi",
        "exec",
        "ping",
        "publish",
        "subscribe",
        "psubscribe",
        "evalsha",
        "evalsha_ro",
    )
)
_OPTIONAL = "client|setname"  # a name in CLIENT LIST is all that is lost
_REFUSES = ("config|set", "xinfo|stream")  # what is asked of these is an error for who may, too
_INFO = ("server", "replication", "stats", "keyspace")


class _Lacking:
    """What was refused, each thing once."""

    def __init__(self) -> None:
        self.rights: dict[tuple[str, str], None] = {}
        self.others: dict[str, TailraceError] = {}

    def add(self, error: TailraceError) -> None:
        if isinstance(error, Denied):
            self.rights.update(dict.fromkeys(error.lacking))
        else:
            self.others.setdefault(error.what, error)


async def check_redis(findings: Findings, config: Config, source: RedisSource) -> None:
    """Changes nothing on the server."""
    url = source.url.get_secret_value()
    entities, rights = Entities(source), capture_rights(config.name, source)
    lacking = _Lacking()
    try:
        async with connect(url, application="tailrace-doctor", rights=rights) as line:
            name = line.server.get("server", "redis").capitalize()
            findings.ok("reachable", f"{line.where}, {name} {line.server.get('version', '')}")
            await _server(findings, line, entities)
            await _notifications(findings, line, source, needed_classes(types_of(source)))
            await _commands(lacking, line, source)
            async with connect(url, application="tailrace-doctor", rights=rights) as other:
                await _channels(lacking, other, entities, canary_channel(config.name, source.name))
            _rights(findings, lacking, line)
    except Denied as error:
        findings.fail("rights", error.what, "as an administrator run", [error.rule])
    except ConfigError as error:
        findings.error("login", error)
    except TailraceError as error:
        findings.error("reachable", error)


async def _server(findings: Findings, line: RedisConnection, entities: Entities) -> None:
    replies = await line.pipeline([("INFO", section) for section in _INFO], errors=True)
    if any(isinstance(reply, ReplyError) for reply in replies):
        return  # among the rights
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
            by_hand = f"set it on the server to {needed} and write notifications: check"
            fix = f"give the user the rights below, or {by_hand}"
            findings.fail("notifications", what, fix)
        else:
            what = f"{what}: nobody notices when events are switched off"
            findings.warn("notifications", what, "let the user read it", [line.rule])
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


async def _commands(lacking: _Lacking, line: RedisConnection, source: RedisSource) -> None:
    """Each command once, on keys that are not there: nothing is read and nothing written."""
    patterns = [KeyPattern(text) for text in _patterns(source)]
    keys = [pattern.format([PROBE] * len(pattern.names)) for pattern in patterns]
    assert line.rights is not None
    asked = [
        (name, _probe(name, keys[0])) for name in line.rights.names(line.major) if _is_asked(name, source)
    ]
    for (name, command), reply in zip(
        asked, await line.pipeline([command for _, command in asked], errors=True), strict=True
    ):
        if isinstance(reply, ReplyError) and code(reply) != "WRONGTYPE":
            error = line.translate(reply, command)
            if isinstance(error, Denied) or name not in _REFUSES:
                lacking.add(error)
    try:
        await Reread(line).read([(line.db, keys[0])])
        await line.pipeline([("MULTI",), ("EXEC",)])
    except TailraceError as error:
        lacking.add(error)
    await _keys(lacking, line, patterns, keys)


def _is_asked(name: str, source: RedisSource) -> bool:
    if name == "config|get":
        return source.notifications == "manage"
    return name not in _ELSEWHERE and name != _OPTIONAL


def _probe(name: str, key: bytes) -> Command:
    args = _PROBES.get(name, (_KEY,))
    return [*name.upper().split("|"), *(key if arg == _KEY else arg for arg in args)]


async def _keys(
    lacking: _Lacking, line: RedisConnection, patterns: Sequence[KeyPattern], keys: Sequence[bytes]
) -> None:
    """By name the patterns whose keys may not be read; without a right to TYPE that is not known yet."""
    commands = [("TYPE", key) for key in keys]
    denied = []
    for pattern, command, reply in zip(
        patterns, commands, await line.pipeline(commands, errors=True), strict=True
    ):
        error = line.translate(reply, command) if isinstance(reply, ReplyError) else None
        if isinstance(error, Denied) and error.lacking[0][0] == READ:
            denied.append(pattern.text)
    if denied:
        for right in [right for right in lacking.rights if right[0] == READ]:
            del lacking.rights[right]
        lacking.rights.update({(READ, f"keys of {text}"): None for text in denied})


def _patterns(source: RedisSource) -> Iterator[str]:
    for entity in source.entities.values():
        if entity.pattern is not None:
            yield entity.pattern
        for column in entity.columns:
            yield from entity.column(column).keys.values()


async def _channels(lacking: _Lacking, line: RedisConnection, entities: Entities, canary: bytes) -> None:
    """Each subscription, in a transaction that is never carried out: rights are checked as it is filled."""
    try:
        await line.command("MULTI")
    except TailraceError as error:
        lacking.add(error)
        return
    commands: list[Command] = [("SUBSCRIBE", canary), ("PUBLISH", canary, ""), ("PING",)]
    for db, globs in entities.globs().items():
        commands += [("PSUBSCRIBE", channel_pattern(db, glob)) for glob in globs]
    for command, reply in zip(commands, await line.pipeline(commands, errors=True), strict=True):
        if isinstance(reply, ReplyError):
            lacking.add(line.translate(reply, command))


def _rights(findings: Findings, lacking: _Lacking, line: RedisConnection) -> None:
    for error in lacking.others.values():
        findings.error("rights", error)
    if lacking.rights:
        what = f"the user {line.user!r} {told(tuple(lacking.rights))}"
        findings.fail("rights", what, "as an administrator run", [line.rule])
    elif not lacking.others:
        findings.ok("rights", "every command, key and channel that capture needs")
