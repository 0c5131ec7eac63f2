"""The masters of a Redis Cluster, as one of its nodes tells them (CLUSTER SLOTS). No checks of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.crc import key_slot

from streamer.redis.address import at

SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Node:
    place: str  # host:port
    url: str
    slots: tuple[tuple[int, int], ...]  # first and last of each range

    def has(self, key: str) -> bool:
        slot = key_slot(key.encode())
        return any(first <= slot <= last for first, last in self.slots)


async def masters_of(client: Redis, url: str) -> list[Node]:
    """`client`: to the node of the url, which gives text."""
    ranges: dict[tuple[str, int], list[tuple[int, int]]] = {}
    reply: list[Any] = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
    for first, last, master, *_ in reply:
        host = str(master[0]) or urlsplit(url).hostname or ""
        ranges.setdefault((host, int(master[1])), []).append((int(first), int(last)))
    return [Node(f"{host}:{port}", at(url, host, port), tuple(r)) for (host, port), r in ranges.items()]


def unserved(nodes: list[Node]) -> int:
    """How many slots nobody has."""
    return SLOTS - sum(last - first + 1 for node in nodes for first, last in node.slots)
