"""What all sandbox servers share: the line to the guardian, start, readiness, kill and stop.

Owns no knowledge of any particular server.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from streamer.sandbox import guardian as guardian_program
from streamer.sandbox.errors import SandboxError

START_LIMIT_S = 60.0
"""A cold start takes 2 s; recovery after a kill in the middle of a bulk load may take far longer."""
STOP_LIMIT_S = 30.0
QUICK_END_LIMIT_S = 3.0
"""For servers whose data is thrown away: an immediate shutdown takes 0.1 s."""
POLL_S = 0.01
PORT_MOVES = 5
"""Attempts with another port when somebody else has taken the one just chosen."""
LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 64 * 1024


class GuardianLine:
    """Starts a guardian process and talks to it; safe to use from several threads."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._lock = threading.Lock()
        self._pending = b""
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    guardian_program.__file__,
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            SandboxError: the guardian is gone, or could not do it.
        """
        with self._lock:
            try:
                self._socket.sendall(json.dumps({"op": op, **request}).encode() + b"\n")
                while b"\n" not in self._pending:
                    data = self._socket.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    self._pending += data
            except OSError as error:
                raise SandboxError(
                    "the guardian process of the sandbox is gone, and its servers with it",
                    fix="start the sandbox again",
                ) from error
            line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SandboxError(f"the sandbox could not {op}: {answer['error']}")
        return answer

    def free_port(self) -> int:
        """A port on 127.0.0.1 that no other sandbox will take while this one lives."""
        port = self.ask("port", port=None)["port"]
        if port is None:
            low, high = guardian_program.PORTS
            raise SandboxError(
                f"no free port between {low} and {high}", fix="stop other servers on this machine"
            )
        return int(port)

    def detach(self) -> None:
        """Let the guardian and its servers outlive this process; SIGTERM to `pid` ends them."""
        self.ask("detach")
        self._socket.close()
        self._process.returncode = 0  # its fate is no longer ours to wait for
        self.closed = True

    def close(self) -> None:
        """Stop every server, remove the folders, end the guardian."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(SandboxError):
            self.ask("quit")
        self._socket.close()
        self._process.wait()


class Server:
    """One real server as a child of a guardian: kill -9 it, and start it again on the same data.

    Subclasses give the command, the readiness test and the signals.
    """

    kind = "server"
    stop_signal = signal.SIGTERM
    quick_end_signal = signal.SIGKILL

    def __init__(self, folder: Path, *, port: int | None, guardian: GuardianLine | None, keep: bool) -> None:
        """`folder` belongs to this server; with `keep` it stays when the server is closed."""
        self.folder = folder.absolute()
        self.host = "127.0.0.1"
        self._wanted_port = port
        self._port: int | None = None
        self._keep = keep
        self._owns_guardian = guardian is None
        self._guardian = guardian
        self._pid: int | None = None
        self._started_once = False
        self._log_from: dict[Path, int] = {}

    # -- what subclasses say

    def _prepare(self) -> None:
        """Make the data if there is none; called before every start."""
        raise NotImplementedError

    def _choose_port(self) -> int:
        if self._wanted_port is None:
            return self.guardian.free_port()
        self.guardian.ask("port", port=self._wanted_port)
        return self._wanted_port

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "JAVA_HOME")
        return {k: v for k, v in os.environ.items() if k in kept} | {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}

    def _owner(self) -> tuple[int, int] | None:
        """(uid, gid) to run as, None for this process's own."""
        return None

    def _pid_file(self) -> Path | None:
        return None

    def _hint(self, tail: str) -> str:
        """What to do next, given the end of the log of a failed start."""
        if "in use" in tail:
            return f"port {self.port} is taken: stop what listens there, or choose another port"
        if "No space left" in tail:
            return f"the disk of {self.folder} is full: free some space"
        if self._keep:
            folder = self.folder
            return f"the log below says why (all: {folder}/*.log); if its data is damaged, remove {folder}"
        return "the log below says why; its folder is removed with the sandbox, so start afresh"

    # -- for users

    @property
    def port(self) -> int:
        if self._port is None:
            raise SandboxError(f"{self.kind} has not been started yet", fix="call start() first")
        return self._port

    @property
    def guardian(self) -> GuardianLine:
        if self._guardian is None:
            self._guardian = GuardianLine()
        return self._guardian

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it does not run."""
        if self._pid is not None and self.guardian.ask("poll", pid=self._pid)["code"] is not None:
            self._pid = None
        return self._pid

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def log_path(self) -> Path:
        """What the process prints."""
        return self.folder / f"{self.kind}.log"

    def log_paths(self) -> list[Path]:
        """All its logs, the most telling first."""
        return [self.log_path]

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the server's own logs, of this start only."""
        tails = (tail_of(path, lines, start=self._log_from.get(path, 0)) for path in self.log_paths())
        return "\n".join(tail for tail in tails if tail)

    def start(self) -> Self:
        """Start and wait until it takes connections.

        Raises:
            SandboxError: with the log's tail and what to do.
        """
        if self.running:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        for move in range(PORT_MOVES):
            if self._port is None:
                self._port = self._choose_port()
            self._log_from = {path: size_of(path) for path in self.log_paths()}
            self._prepare()
            problem = self._start_once()
            if problem is None:
                break
            chosen_for_us = self._wanted_port is None and not self._started_once
            if not chosen_for_us or "in use" not in problem.log_tail or move == PORT_MOVES - 1:
                raise problem
            self._port = None
        self._started_once = True
        return self

    def _start_once(self) -> SandboxError | None:
        self._pid = self._spawn(self._command())
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if self.pid is None:
                what = f"{self.kind} ended while starting"
                break
            if self._ready():
                return None
            if time.monotonic() > deadline:
                what = f"{self.kind} is not ready after {START_LIMIT_S:.0f} s"
                self.kill()
                break
            time.sleep(POLL_S)
        tail = self.log_tail()
        return SandboxError(what, where=str(self.folder), fix=self._hint(tail), log_tail=tail)

    def _spawn(self, command: list[str]) -> int:
        owner = self._owner()
        pid_file = self._pid_file()
        answer = self.guardian.ask(
            "spawn",
            argv=command,
            env=self._environment(),
            cwd=str(self.folder),
            output=str(self.log_path),
            uid=owner[0] if owner else None,
            gid=owner[1] if owner else None,
            end_signal=int(self.stop_signal if self._keep else self.quick_end_signal),
            end_wait_s=STOP_LIMIT_S if self._keep else QUICK_END_LIMIT_S,
            pid_file=str(pid_file) if pid_file else None,
        )
        return int(answer["pid"])

    def _run_to_end(self, command: list[str], what: str) -> None:
        """Run a helper program of the server (making its data); SandboxError when it fails."""
        pid = self._spawn(command)
        deadline = time.monotonic() + START_LIMIT_S
        while (code := self.guardian.ask("poll", pid=pid)["code"]) is None:
            if time.monotonic() > deadline:
                self.guardian.ask("kill", pid=pid)
                code = -int(signal.SIGKILL)
                break
            time.sleep(POLL_S)
        if code != 0:
            tail = self.log_tail()
            raise SandboxError(
                f"{what} failed with exit code {code}",
                where=str(self.folder),
                fix=self._hint(tail),
                log_tail=tail,
            )

    def kill(self) -> None:
        """SIGKILL to the server and everything it has started; returns when they are gone."""
        if self._pid is not None:
            self.guardian.ask("kill", pid=self._pid)
            self._pid = None

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Ask it to stop in good order; SIGKILL after `limit_s`."""
        pid = self.pid
        if pid is None:
            return
        self.guardian.ask("signal", pid=pid, signal=int(self.stop_signal))
        deadline = time.monotonic() + limit_s
        while self.running:
            if time.monotonic() > deadline:
                self.kill()
                return
            time.sleep(POLL_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop; remove the folder unless it is to be kept."""
        if self._guardian is None or self._guardian.closed:
            return
        if self._keep:
            self.stop()
        else:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._owns_guardian:
            self._guardian.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def size_of(path: Path) -> int:
    """Size in bytes, 0 when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail_of(path: Path, lines: int, *, start: int = 0) -> str:
    """The last `lines` lines of what is behind byte `start` of a file, empty when there is none."""
    size = size_of(path)
    if size == 0:
        return ""
    with path.open("rb") as log:
        # A log smaller than before has been rotated: all of it is of this start.
        log.seek(max(start if start <= size else 0, size - LOG_TAIL_BYTES))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
