"""A Redis Cluster of three masters without replicas, started by the first test that asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from streamer.sandbox import Sandbox, ValkeyServer

MASTERS = 3
SLOTS = 16384
READY_LIMIT_S = 60.0
POLL_S = 0.02
PASSWORD = "cluster-password"  # one for all nodes, as a client has one
NODE_TIMEOUT_MS = "5000"  # a busy machine stops a node for a second
MIGRATE_LIMIT_MS = 5000


@dataclass(slots=True)
class Cluster:
    nodes: list[ValkeyServer]

    @property
    def url(self) -> str:
        """Of one node."""
        return self.nodes[0].url

    def node(self, number: int) -> Redis:
        """That node itself, whatever slots it has."""
        return Redis.from_url(self.nodes[number].url, protocol=2)

    def owner(self, slot: int) -> int:
        """The number of the node that has it."""
        with self.node(0) as client:
            for first, last, master, *_ in client.execute_command("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return next(n for n, node in enumerate(self.nodes) if node.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def id_of(self, number: int) -> str:
        with self.node(number) as client:
            return _text(client.execute_command("CLUSTER", "MYID"))

    def flush(self) -> None:
        for number in range(MASTERS):
            with self.node(number) as client:
                client.flushall()

    def begin_move(self, slot: int, to: int) -> None:
        """From now on the slot is on its way; its keys are where they were."""
        was = self.owner(slot)
        with self.node(was) as source, self.node(to) as target:
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(was))
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))

    def move_keys(self, slot: int, to: int, count: int = 1_000_000) -> None:
        was, there = self.owner(slot), self.nodes[to]
        with self.node(was) as source:
            keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                source.execute_command(
                    *("MIGRATE", there.host, there.port, "", 0, MIGRATE_LIMIT_MS),
                    *("AUTH", PASSWORD, "KEYS", *keys),
                )

    def end_move(self, slot: int, to: int) -> None:
        name = self.id_of(to)
        for number in [to, *(n for n in range(MASTERS) if n != to)]:
            with self.node(number) as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)

    def restart(self, number: int) -> None:
        """kill -9, and started again; what it has acknowledged is there."""
        self.nodes[number].kill()
        self.nodes[number].start()
        self.wait()

    def wait(self) -> None:
        """Until every node knows the others, and that all slots are served."""
        deadline = time.monotonic() + READY_LIMIT_S
        for number in range(MASTERS):
            with self.node(number) as client:
                while not _is_ready(client):
                    assert time.monotonic() < deadline, f"node {number} does not find its cluster"
                    time.sleep(POLL_S)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _is_ready(client: Redis) -> bool:
    lines = _text(client.execute_command("CLUSTER", "INFO")).split()
    return "cluster_state:ok" in lines and f"cluster_known_nodes:{MASTERS}" in lines


def form(nodes: list[ValkeyServer]) -> Cluster:
    """Nodes that run, each alone."""
    cluster = Cluster(nodes)
    with cluster.node(0) as client:
        bus = client.config_get("cluster-port")["cluster-port"]
    for number in range(MASTERS):
        with cluster.node(number) as client:
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS - 1
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            if number:
                client.execute_command("CLUSTER", "MEET", nodes[0].host, nodes[0].port, bus)
    cluster.wait()
    return cluster


@pytest.fixture(scope="session")
def cluster_of_session(sandbox: Sandbox, redis_program: Path | None) -> Cluster:
    nodes = []
    for _ in range(MASTERS):
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(sandbox.guardian.free_port()),
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "requirepass": PASSWORD,
        }
        server = sandbox.add_valkey(settings=settings, program=redis_program)
        server.folder.mkdir(parents=True, exist_ok=True)
        (server.folder / "password").write_text(PASSWORD, encoding="utf-8")
        nodes.append(server.start())
    return form(nodes)


@pytest.fixture
def redis_cluster(cluster_of_session: Cluster) -> Iterator[Cluster]:
    """Empty, with all of its nodes."""
    for server in cluster_of_session.nodes:
        server.start()
    cluster_of_session.wait()
    cluster_of_session.flush()
    yield cluster_of_session
    for server in cluster_of_session.nodes:
        server.start()
    cluster_of_session.wait()
    cluster_of_session.flush()
