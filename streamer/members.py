"""Which processes of this host have ended: a dead member's partitions need not wait for its session.

A member's client id says which process it is: host and boot, pid namespace, pid and its start time.
One of this host that is no longer there is asked out of the group before this process joins it. A
wrong guess would cost a live member one rebalance: checkpoints and transactional ids, not the group, keep
rows right.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest

PREFIX = "tailrace-"
_PARTS = 5  # role, host, namespace, pid, start


def client_id(role: str, pid: int = 0) -> str:
    """Of a process, or of this one, as `role` (apply, capture). Where /proc is not there it is never taken
    for dead."""
    pid = pid or os.getpid()
    return f"{PREFIX}{role}/{_host()}/{_namespace()}/{pid}/{_start(pid) or '-'}"


def can_be_told() -> bool:
    """Whether another process of this host could see that this one has ended."""
    return bool(_start(os.getpid()))


def is_dead(client: str) -> bool:
    """Whether the client id is of a process of this host that has ended."""
    parts = client.split("/")
    if not client.startswith(PREFIX) or len(parts) != _PARTS:
        return False
    _, host, namespace, pid, start = parts
    if (host, namespace) != (_host(), _namespace()) or start == "-" or not pid.isdigit():
        return False
    return _start(int(pid)) != start


async def remove_dead(admin: AIOKafkaAdminClient, group: str) -> int:
    """How many were asked out. Raises aiokafka's errors."""
    node = await admin.find_coordinator(group)
    removed = 0
    for response in await admin.describe_consumer_groups([group], node):
        for _, _, _, _, _, members, *_ in response.groups:
            for member in members:
                if is_dead(member[-4]):
                    await admin._send_request(LeaveGroupRequest(group, member[0]), node)
                    removed += 1
    return removed


def _host() -> str:
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))[:8]
    return f"{socket.gethostname()}.{boot}"


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "-"


def _start(pid: int) -> str:
    """Start time in ticks since boot; empty when there is no such process."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[0] in ("Z", "X"):
        return ""
    return fields[19]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
