"""What a Redis server must be to hold a copy, read off its INFO. Pure.

Owns what is refused (H21: a server that evicts any key loses rows, versions and checkpoints), and what is
worth a warning: how much a crash of the server takes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamer.errors import ConfigError, TailraceError, TargetUnavailable

VERSION_MIN = (6, 0)
POLICY_FIX = "CONFIG SET maxmemory-policy noeviction (and in redis.conf); keys of Tailrace's own must stay"


def policy_problem(info: Mapping[str, Any]) -> str:
    """Empty when nothing is evicted that must stay."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if not policy.startswith("allkeys-"):
        return ""
    return f"maxmemory-policy is {policy}: the server may evict rows, versions and checkpoints"


def in_cluster(info: Mapping[str, Any]) -> bool:
    return info.get("redis_mode") == "cluster" or str(info.get("cluster_enabled", 0)) == "1"


def refusal(info: Mapping[str, Any], where: str) -> TailraceError | None:
    """Why a target cannot be here, or not now."""
    mode, role = info.get("redis_mode"), info.get("role")
    if mode == "sentinel":
        fix = "point the url at the primary that it watches (SENTINEL GET-MASTER-ADDR-BY-NAME tells it)"
        return ConfigError("this is a Sentinel, which holds no data", where=where, fix=fix)
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2]) < VERSION_MIN:
        return ConfigError(f"the server is Redis {version}", where=where, fix="Redis 6.0 at least is needed")
    if str(info.get("loading", 0)) == "1":
        return TargetUnavailable("the server is loading its data", where=where, fix="it goes on by itself")
    if role == "slave" and str(info.get("slave_read_only", 1)) == "1":
        return TargetUnavailable(
            f"the server is a read-only replica of {info.get('master_host')}:{info.get('master_port')}",
            where=where,
            fix="point the url at the primary; it goes on by itself when this server is one",
        )
    if role == "slave":
        fix = "point the url at the primary"
        return ConfigError("the server is a replica: its next sync undoes every write", where=where, fix=fix)
    if problem := policy_problem(info):
        return ConfigError(problem, where=where, fix=POLICY_FIX)
    return None


def durability(info: Mapping[str, Any], fsync: str | None) -> tuple[bool, str]:
    """(whether it is worth a warning, a sentence). `fsync`: the setting appendfsync, where it may be read."""
    if str(info.get("aof_enabled", 0)) == "1":
        if str(info.get("aof_last_write_status", "ok")) != "ok":
            return True, "the append-only file cannot be written: see the server's log"
        if fsync == "always":
            return False, "appendonly with appendfsync always: a crash of the machine loses nothing"
        kept = "about a second" if fsync == "everysec" else "some seconds" if fsync else "a second or more"
        what = f"appendonly{f' with appendfsync {fsync}' if fsync else ''}"
        return False, f"{what}: a crash of the machine takes {kept} back, checkpoints included"
    return True, (
        "appendonly is off: a restart goes back to the last snapshot, or to nothing, checkpoints included;"
        " what is missing is applied again from Kafka as far as its retention reaches"
    )
