"""A primary, a replica and Sentinels that watch them, all real, and the URL by which they are followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as Away
from redis.exceptions import ResponseError

from streamer.sandbox import Sandbox, ValkeyServer

NAME = "game"
PASSWORD = "one-for-all"  # of the servers and the Sentinels
DOWN_MS = 300  # a server that is silent for so long is down
FAILOVER_MS = 3_000
INFO_MS = 200  # between two looks at a server; 10 s are Sentinel's own
READY_LIMIT_S = 60.0
POLL_S = 0.02


class SentinelServer(ValkeyServer):
    """Its folder has no data; what it learns it writes into its own config file."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--sentinel"]


@dataclass(slots=True)
class Watched:
    servers: list[ValkeyServer]  # the primary first
    sentinels: list[SentinelServer]

    def url(self, **options: str) -> str:
        hosts = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        query = urlencode({"sentinel_password": PASSWORD, **options})
        return f"redis+sentinel://default:{PASSWORD}@{hosts}/{NAME}/0?{query}"

    def wait(self) -> None:
        """Until every Sentinel knows the others, and a replica that could be promoted."""
        self._until(self._is_whole)

    def wait_for_primary(self, server: ValkeyServer) -> None:
        """Until every Sentinel says so."""
        self._until(lambda: all(self._primary(one) == server.port for one in self.sentinels))

    def failover(self) -> None:
        """As an operator does it: the primary lives, and is a replica afterwards."""
        with _client(self.sentinels[0]) as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME)

    def cut_off_replica(self) -> None:
        """From now on it gets nothing, and does not know the password for getting on."""
        with _client(self.servers[1]) as client:
            client.config_set("masterauth", "wrong")
            client.execute_command("CLIENT", "KILL", "TYPE", "master")
            self._until(lambda: client.info("replication")["master_link_status"] == "down")

    def _is_whole(self) -> bool:
        for one in self.sentinels:
            with _client(one) as client:
                if len(client.execute_command("SENTINEL", "SENTINELS", NAME)) < len(self.sentinels) - 1:
                    return False
                replicas = client.execute_command("SENTINEL", "REPLICAS", NAME)
                if [_field(each, b"master-link-status") for each in replicas] != [b"ok"]:
                    return False
        return True

    def _primary(self, one: SentinelServer) -> int:
        with _client(one) as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def _until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while True:
            with suppress(Away, ResponseError):  # of one that is starting, or has just been killed
                if reached():
                    return
            assert time.monotonic() < deadline, "the Sentinels do not agree"
            time.sleep(POLL_S)


def _field(flat: list[bytes], name: bytes) -> bytes:
    return dict(zip(flat[::2], flat[1::2], strict=True))[name]


@contextmanager
def _client(server: ValkeyServer) -> Iterator[Redis]:
    client = Redis(host=server.host, port=server.port, password=PASSWORD, protocol=2)
    try:
        yield client
    finally:
        client.close()


def _made(sandbox: Sandbox, folder: Path, settings: dict[str, str], program: Path | None) -> ValkeyServer:
    folder.mkdir(mode=0o700)
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    made = SentinelServer if "sentinel monitor" in settings else ValkeyServer
    return made(folder, guardian=sandbox.guardian, settings=settings, program=program)


def start(stack: ExitStack, sandbox: Sandbox, folder: Path, program: Path | None, sentinels: int) -> Watched:
    settings = {"masterauth": PASSWORD, "repl-diskless-sync-delay": "0"}
    primary = stack.enter_context(_made(sandbox, folder / "primary", settings, program))
    settings["replicaof"] = f"{primary.host} {primary.port}"
    replica = stack.enter_context(_made(sandbox, folder / "replica", settings, program))
    watch = {
        "sentinel monitor": f"{NAME} {primary.host} {primary.port} {sentinels // 2 + 1}",
        "sentinel auth-pass": f"{NAME} {PASSWORD}",
        "sentinel sentinel-pass": PASSWORD,
        "sentinel down-after-milliseconds": f"{NAME} {DOWN_MS}",
        "sentinel failover-timeout": f"{NAME} {FAILOVER_MS}",
    }
    watchers = []
    for number in range(sentinels):
        one = _made(sandbox, folder / f"sentinel-{number}", watch, program)
        assert isinstance(one, SentinelServer)
        watchers.append(stack.enter_context(one))
        with _client(one) as client:
            client.execute_command("SENTINEL", "DEBUG", "info-period", INFO_MS)
    watched = Watched([primary, replica], watchers)
    watched.wait()
    return watched


@pytest.fixture
def make_watched(
    sandbox: Sandbox, tmp_path: Path, redis_program: Path | None
) -> Iterator[Callable[[int], Watched]]:
    """Of so many Sentinels."""
    with ExitStack() as stack:
        yield lambda sentinels: start(stack, sandbox, tmp_path, redis_program, sentinels)
