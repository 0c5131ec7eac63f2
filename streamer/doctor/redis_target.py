"""The checks of a Redis target: one server that can be written and evicts nothing, and what a crash takes."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from streamer.config import Config, RedisTarget, built_flows
from streamer.doctor.check import Findings
from streamer.redis.address import parse_address
from streamer.redis.store import durability, refusal

LIMIT_S = 10.0
# What the scripts of apply run.
COMMANDS = (
    "INFO", "TIME", "EVAL s 0", "EVALSHA s 0", "TYPE k", "EXISTS k", "UNLINK k", "SET k v", "GET k",
    "PEXPIRE k 1", "PTTL k", "HSET k f v", "HSETNX k f v", "HGET k f", "HMGET k f", "HGETALL k", "HKEYS k",
    "HLEN k", "HSCAN k 0", "HDEL k f", "ZADD k 1 m", "ZSCORE k m", "ZCARD k", "ZCOUNT k 0 1",
    "ZRANGEBYSCORE k 0 1", "ZREMRANGEBYSCORE k 0 1", "ZREM k m", "SADD k m", "SMEMBERS k", "SISMEMBER k m",
    "SREM k m", "RPUSH k v", "LRANGE k 0 1",
)  # fmt: skip
PROBE = "_tailrace:probe"


async def check_redis_target(findings: Findings, config: Config, target: RedisTarget) -> None:
    """Changes nothing on the server."""
    flows, stopped = built_flows(config, target.name)
    for reasons in stopped.values():
        for unbuilt in reasons:
            findings.warn("flows", f"{unbuilt.path}: {unbuilt.what}; the flow does not run", unbuilt.fix)
    if not flows:
        findings.warn("flows", "no flow that can run leads here", f"add one with `to: {target.name}`")
    url = target.url.get_secret_value()
    address = parse_address(url)  # ConfigError names what is wrong with it
    client = Redis.from_url(
        url,
        protocol=2,
        decode_responses=True,
        client_name="tailrace-doctor",
        single_connection_client=True,
        socket_connect_timeout=LIMIT_S,
        socket_timeout=LIMIT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        await _server(findings, client, str(address))
        await _group(findings, client, f"{config.name}.{target.name}")
        await _rights(findings, client, address.user)
    except AuthenticationError as error:
        findings.fail("login", str(error), "correct user and password of the target's url")
    except NoPermissionError as error:
        findings.fail("rights", str(error), f"ACL SETUSER {address.user} +info +hget +config|get")
    except (RedisError, OSError) as error:
        fix = "check that the server runs and can be reached from here"
        findings.fail("reachable", f"{address}: {error}", fix)
    finally:
        await client.aclose()


async def _server(findings: Findings, client: Redis, where: str) -> None:
    info = await client.info()
    name = "Valkey" if "valkey_version" in info else "Redis"
    findings.ok("reachable", f"{where}, {name} {info.get('valkey_version', info.get('redis_version'))}")
    refused = refusal(info, where)
    if refused is not None:
        findings.error("server", refused)
    else:
        policy = info.get("maxmemory_policy", "noeviction")
        findings.ok("server", f"a primary, no Cluster, maxmemory-policy {policy}")
    try:
        fsync = (await client.config_get("appendfsync")).get("appendfsync")
    except ResponseError:  # switched off, or not allowed
        fsync = None
    worth_a_warning, what = durability(info, fsync)
    if worth_a_warning:
        findings.warn("durability", what, "CONFIG SET appendonly yes, and in redis.conf")
    else:
        findings.ok("durability", what)


async def _group(findings: Findings, client: Redis, group: str) -> None:
    bound = await client.hget("_tailrace:identity", "group")
    if bound is None:
        findings.ok("identity", "nothing of Tailrace's is here yet")
    elif str(bound) == group:
        findings.ok("identity", f"belongs to the consumer group {group!r}")
    else:
        findings.fail(
            "identity",
            f"this target belongs to the consumer group {str(bound)!r}, not to {group!r}",
            "give the target the name it had in the config, or another database of the server",
        )


async def _rights(findings: Findings, client: Redis, user: str) -> None:
    """What the server would say to each command, where it can be asked (Redis 7)."""
    refused = []
    for command in COMMANDS:
        args = [PROBE if word == "k" else word for word in command.split()]
        try:
            said = await client.execute_command("ACL", "DRYRUN", user, *args)  # type: ignore[no-untyped-call]
        except ResponseError:
            findings.note("rights", "this user cannot ask for its rights: apply tries them when it starts")
            return
        if str(said) not in ("OK", "True"):
            refused.append(args[0])
    if refused:
        rules = " ".join(f"+{name.lower()}" for name in refused)
        what = f"the user {user!r} may not run {', '.join(refused)} on _tailrace:*"
        findings.fail("rights", what, f"as an administrator run ACL SETUSER {user} {rules} ~_tailrace:*")
    else:
        findings.ok("rights", "every command that apply needs, on its own keys")
