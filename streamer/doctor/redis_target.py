"""The checks of a Redis target: servers that can be written and evict nothing, and what a crash takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from streamer.config import Config, RedisTarget, built_flows
from streamer.doctor.bound import is_own
from streamer.doctor.check import Findings
from streamer.doctor.redis_keys import check_keys
from streamer.doctor.redis_nodes import SLOTS, masters_of, unserved
from streamer.doctor.source import SourceFacts
from streamer.redis.acl import Rights, major_of
from streamer.redis.address import parse_address
from streamer.redis.replies import RUN, lacking, told
from streamer.redis.rights import target_rights
from streamer.redis.store import durability, in_cluster, refusal

LIMIT_S = 10.0
# What apply runs, by itself and in its scripts; each as the server is asked about it.
COMMANDS = (
    "INFO", "TIME", "EVAL s 0", "EVALSHA s 0", "TYPE k", "EXISTS k", "UNLINK k", "SET k v", "GET k",
    "STRLEN k", "PEXPIRE k 1", "PTTL k", "HSET k f v", "HSETNX k f v", "HGET k f", "HMGET k f", "HGETALL k",
    "HKEYS k", "HLEN k", "HSCAN k 0", "HDEL k f", "ZADD k 1 m", "ZSCORE k m", "ZCARD k", "ZCOUNT k 0 1",
    "ZRANGEBYSCORE k 0 1", "ZREMRANGEBYSCORE k 0 1", "ZREM k m", "SADD k m", "SMEMBERS k", "SISMEMBER k m",
    "SREM k m", "RPUSH k v", "LRANGE k 0 1",
)  # fmt: skip
CLUSTER_COMMANDS = ("CLUSTER SLOTS", "COMMAND", "ASKING")
IDENTITY, PROBE = "_tailrace:identity", "_tailrace:probe"
CLUSTER_IDENTITY = "_tailrace:{state}:identity"
WRITE = "write"
_GRANT = "as an administrator run"
_LASTING = "CONFIG SET appendonly yes, and in redis.conf"
_URL = "write redis://user:password@host:port/0, of any of its nodes"
_FORM = "form the cluster (redis-cli --cluster create HOST:PORT HOST:PORT HOST:PORT); apply waits until then"
_COVER = "give them to a node (redis-cli --cluster fix HOST:PORT); apply waits until then"


async def check_redis_target(
    findings: Findings,
    config: Config,
    target: RedisTarget,
    sources: Mapping[str, SourceFacts],
    bound: str | None = None,
) -> None:
    """Changes nothing on the server. `bound`: the id of the store that its group belongs to."""
    flows, stopped = built_flows(config, target.name)
    for reasons in stopped.values():
        for unbuilt in reasons:
            findings.warn("flows", f"{unbuilt.path}: {unbuilt.what}; the flow does not run", unbuilt.fix)
    if not flows:
        findings.warn("flows", "no flow that can run leads here", f"add one with `to: {target.name}`")
    check_keys(findings, flows, sources)
    url = target.url.get_secret_value()
    address = parse_address(url)  # ConfigError names what is wrong with it
    client = _line_to(url)
    rights = target_rights(config, target.name)
    group = f"{config.name}.{target.name}"
    try:
        info = await client.info()
        _reached(findings, info, str(address))
        findings.store = "redis", info.get("run_id"), address.db
        if in_cluster(info):
            rights = target_rights(config, target.name, cluster=True)
            await _cluster(findings, client, url, rights, group, bound)
        else:
            await _server(findings, client, info, str(address))
            await _group(findings, client, IDENTITY, group, bound)
            await _rights(findings, {str(address): client}, address.user, rights)
    except AuthenticationError as error:
        findings.fail("login", str(error), "correct user and password of the target's url")
    except NoPermissionError as error:
        what = f"the user {address.user!r} {told(lacking(str(error), ('HGET', IDENTITY)))}"
        findings.fail("rights", what, _GRANT, [rights.rule(address.user)])
    except (RedisError, OSError) as error:
        fix = "check that the server runs and can be reached from here"
        findings.fail("reachable", f"{address}: {error}", fix)
    finally:
        await client.aclose()


def _line_to(url: str) -> Redis:
    return Redis.from_url(
        url,
        protocol=2,
        decode_responses=True,
        client_name="tailrace-doctor",
        single_connection_client=True,
        socket_connect_timeout=LIMIT_S,
        socket_timeout=LIMIT_S,
        retry=Retry(NoBackoff(), 0),
    )


def _reached(findings: Findings, info: Mapping[str, Any], where: str) -> None:
    name = "Valkey" if "valkey_version" in info else "Redis"
    findings.ok("reachable", f"{where}, {name} {info.get('valkey_version', info.get('redis_version'))}")


async def _server(findings: Findings, client: Redis, info: Mapping[str, Any], where: str) -> None:
    refused = refusal(info, where)
    if refused is not None:
        findings.error("server", refused)
    else:
        policy = info.get("maxmemory_policy", "noeviction")
        findings.ok("server", f"a primary, no Cluster, maxmemory-policy {policy}")
    worth_a_warning, what = await _durability(client, info)
    if worth_a_warning:
        findings.warn("durability", what, _LASTING)
    else:
        findings.ok("durability", what)


async def _durability(client: Redis, info: Mapping[str, Any]) -> tuple[bool, str]:
    try:
        fsync = (await client.config_get("appendfsync")).get("appendfsync")
    except ResponseError:  # switched off, or not allowed
        fsync = None
    return durability(info, fsync)


async def _cluster(
    findings: Findings, client: Redis, url: str, rights: Rights, group: str, bound: str | None
) -> None:
    """Every master is looked at: each has rows, and one of them the checkpoints."""
    address = parse_address(url)
    if address.path is not None or address.db:
        findings.fail("server", "a Redis Cluster has database 0 only, reached by host and port", _URL)
        return
    nodes = await masters_of(client, url)
    if not nodes:
        findings.fail("server", "no slots are assigned: its nodes are no cluster yet", _FORM)
        return
    if missing := unserved(nodes):
        findings.fail("server", f"nobody has {missing} of the cluster's {SLOTS} slots", _COVER)
        return
    lines = {node.place: _line_to(node.url) for node in nodes}
    try:
        infos = {place: await line.info() for place, line in lines.items()}
        _primaries(findings, infos)
        lasts = {place: await _durability(line, infos[place]) for place, line in lines.items()}
        place, (worth_a_warning, what) = max(lasts.items(), key=lambda item: item[1][0])
        if worth_a_warning:
            findings.warn("durability", f"{place}: {what}", _LASTING)
        else:
            findings.ok("durability", what)
        (at,) = [node.place for node in nodes if node.has(CLUSTER_IDENTITY)]
        await _group(findings, lines[at], CLUSTER_IDENTITY, group, bound)
        await _rights(findings, lines, address.user, rights)
    finally:
        for line in lines.values():
            await line.aclose()


def _primaries(findings: Findings, infos: Mapping[str, Mapping[str, Any]]) -> None:
    refused = [found for place, info in infos.items() if (found := refusal(info, place))]
    for error in refused:
        findings.error("server", error)
    if not refused:
        policies = sorted({str(info.get("maxmemory_policy", "noeviction")) for info in infos.values()})
        what = f"a Redis Cluster of {len(infos)} primaries, maxmemory-policy {', '.join(policies)}"
        findings.ok("server", what)


async def _group(findings: Findings, client: Redis, identity: str, group: str, bound: str | None) -> None:
    theirs, own = await client.hmget(identity, "group", "id")
    if theirs is None:
        if is_own(findings, group, bound, None):
            findings.ok("identity", "nothing of Tailrace's is here yet")
    elif str(theirs) == group:
        if is_own(findings, group, bound, str(own)):
            findings.ok("identity", f"belongs to the consumer group {group!r}")
    else:
        findings.fail(
            "identity",
            f"this target belongs to the consumer group {str(theirs)!r}, not to {group!r}",
            "give the target the name it had in the config, or another database of the server",
        )


async def _rights(findings: Findings, lines: Mapping[str, Redis], user: str, rights: Rights) -> None:
    """Users are each server's own."""
    try:
        for place, client in lines.items():
            if missing := await _missing(client, user, rights):
                on, where = (f" on {place}", " on each node") if len(lines) > 1 else ("", "")
                rule = rights.rule(user, major_of(await client.info()))
                what = f"the user {user!r} {told(tuple(missing))}{on}"
                findings.fail("rights", what, f"{_GRANT}{where}", [rule])
                return
    except ResponseError:
        findings.note("rights", "this user cannot ask for its rights: apply tries them when it starts")
        return
    findings.ok("rights", "every command that apply needs, on its own keys and those of the flows")


async def _missing(client: Redis, user: str, rights: Rights) -> dict[tuple[str, str], None]:
    """What the server would say to each command and each flow's keys, where it can be asked (Redis 7)."""
    missing: dict[tuple[str, str], None] = {}
    asked = [command for command in CLUSTER_COMMANDS if "cluster|slots" in rights.commands]
    for command in (*COMMANDS, *asked):
        args = [PROBE if word == "k" else word for word in command.split()]
        if said := await _refusal(client, user, args):
            own = "key" in said and "command" not in said
            missing[(WRITE, "keys _tailrace:*") if own else (RUN, args[0])] = None
    for glob in rights.keys:
        key = re.sub(rb"(\\)(.)|[*?]", lambda found: found[2] or b"x", glob).decode("utf-8", "replace")
        if (RUN, "UNLINK") not in missing and await _refusal(client, user, ["UNLINK", key]):
            missing[WRITE, f"keys {glob.decode('utf-8', 'replace')}"] = None
    return missing


async def _refusal(client: Redis, user: str, args: list[str]) -> str:
    """The server's words; empty when it would carry the command out."""
    said = str(await client.execute_command("ACL", "DRYRUN", user, *args))  # type: ignore[no-untyped-call]
    return "" if said in ("OK", "True") else said
