"""What the capture of a Redis source, or a Redis target, needs of its user: commands, keys and channels.

Owns the lists; the rule that they make is `acl`'s. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from streamer.config import Config, Flow, RedisSource, built_flows
from streamer.config.key_template import parse_template
from streamer.redis.acl import Rights
from streamer.redis.entities import Entities, types_of
from streamer.redis.notifications import canary_channel, channel_pattern
from streamer.redis.patterns import glob_escape

OWN_KEYS = b"_tailrace:*"

# Of every session: both lines, the looks at the server, and the re-read script, which asks each key's type.
_CAPTURE = (
    *("hello", "select", "client|setname", "client|tracking", "config|get", "multi", "exec", "info", "time"),
    *("publish", "subscribe", "psubscribe", "ping", "scan", "eval_ro", "evalsha_ro", "type", "pttl"),
    *("pexpiretime", "strlen", "get", "hlen", "hgetall", "scard", "smembers", "zcard", "zrange"),
    *("llen", "lrange", "xlen"),
)
# What is read beside the script: large keys in steps, members that may be gone, rows of pivots.
_OF_TYPES: Mapping[str, tuple[str, ...]] = {
    "hash": ("hget", "hmget", "hscan"),
    "set": ("smismember", "sscan"),
    "zset": ("zscore", "zmscore", "zscan"),
    "stream": ("xrange", "xinfo|stream"),
}
_APPLY = (
    *("hello", "select", "client|setname", "ping", "info", "config|get", "time", "eval"),
    *(
        "evalsha",
        "type",
        "exists",
        "unlink",
        "set",
        "get",
        "strlen",
        "pexpire",
        "pttl",
        "hset",
        "hsetnx",
        "hget",
    ),
    *("hmget", "hgetall", "hkeys", "hlen", "hscan", "hdel", "zadd", "zscore", "zcard", "zcount"),
    *("zrangebyscore", "zremrangebyscore", "zrem", "sadd", "smembers", "sismember", "srem", "rpush"),
    "lrange",
)
# Beside them, to walk through all rows.
_WALK = ("scan", "zrange", "sscan", "scard")
# Beside them, where slots are asked for.
_CLUSTER = ("cluster|slots", "command", "asking")


def capture_rights(name: str, source: RedisSource) -> Rights:
    """`name`: the config's."""
    globs = Entities(source).globs()
    commands = [*_CAPTURE, *(name for kind in sorted(types_of(source)) for name in _OF_TYPES.get(kind, ()))]
    if source.notifications == "manage":
        commands.append("config|set")
    keys = dict.fromkeys(glob for wanted in globs.values() for glob in wanted)
    patterns = [channel_pattern(db, glob) for db, wanted in globs.items() for glob in wanted]
    return Rights(tuple(commands), tuple(keys), (canary_channel(name, source.name), *patterns))


def apply_rights(flows: Iterable[Flow], *, cluster: bool = False) -> Rights:
    """Of a target that these flows lead to."""
    keys = dict.fromkeys((OWN_KEYS, *(key_glob(flow) for flow in flows)))
    return Rights((*_APPLY, *(_CLUSTER if cluster else ())), tuple(keys), writes=True)


def reconcile_rights(flows: Iterable[Flow], *, cluster: bool = False) -> Rights:
    """Of whoever looks at all that these flows have written; nothing is written."""
    apply = apply_rights(flows, cluster=cluster)
    return Rights((*apply.commands, *_WALK), apply.keys, writes=True)


def target_rights(config: Config, target: str, *, cluster: bool = False) -> Rights:
    return apply_rights(built_flows(config, target)[0], cluster=cluster)


def key_glob(flow: Flow) -> bytes:
    """What fits every key that the flow writes."""
    if flow.key is not None:
        literals: Sequence[str] = parse_template(flow.key).literals
        return b"*".join(glob_escape(text.encode()) for text in literals) + _marks(flow)
    schema, table = flow.place(*_origin(flow))
    name = f"{schema}:{table}"
    place = b"".join(c.encode() if c in "*?" else glob_escape(c.encode()) for c in name)
    return place if flow.as_ in ("zset", "set") else place + b":*"


def _marks(flow: Flow) -> bytes:
    """Under `write: append` each event's key ends in a mark of its own."""
    return b"*" if flow.write == "append" else b""


def _origin(flow: Flow) -> tuple[str, str]:
    """(schema, table) of what the flow takes, with `*` for what is not known."""
    parts = flow.source_pattern.split(".", 2)
    if len(parts) == 3:
        return parts[1], parts[2]
    return (parts[0] if len(parts) == 2 else "*"), parts[-1]
