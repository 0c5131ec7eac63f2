"""The process that owns the servers of a sandbox and ends them when nobody wants them any more.

A program of its own (standard library only, run by path, its own session). It starts the servers
on behalf of its parent, watches the parent, and when the parent asks, dies or closes the line it
stops every server and removes what it was told to remove. The servers get a death signal
in turn, so that killing the guardian itself leaves no process either.

Line protocol on a socket pair: one JSON object a line, one answer a request.

    {"op": "remove", "path"}                        remove this file or folder at the end
    {"op": "spawn", "argv", "env", "cwd", "output", "uid", "gid", "end_signal", "end_wait_s",
            "pid_file"}                             -> {"pid"}
    {"op": "poll", "pid"}                           -> {"code": int | null}
    {"op": "signal", "pid", "signal"}
    {"op": "kill", "pid"}                           SIGKILL for it and all it has started -> {"code"}
    {"op": "port", "port": int | null}              reserve this or a free port -> {"port": int | null}
    {"op": "detach"}                                outlive the parent; SIGTERM ends it
    {"op": "quit"}                                  end all, answer, exit

It must not import anything of Tailrace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IPC_RMID = 0

PORTS = (20_000, 32_000)
"""Below the usual range of outgoing connections, so that no client's own port takes the place of
a server that is down for a moment."""
PORT_TRIES = 200
KILL_WAIT_S = 10.0
"""How long a process may take to disappear after SIGKILL (a big one frees its memory first)."""
REMOVE_TRIES = 20
POLL_S = 0.01

libc = ctypes.CDLL(None, use_errno=True)


class Guardian:
    """State of the program: the line to the parent, the children, what to remove, the ports."""

    def __init__(self, line: socket.socket, parent: int) -> None:
        self.line: socket.socket | None = line
        self.parent_fd: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.parent_fd = os.pidfd_open(parent)
        self.children: dict[int, dict[str, Any]] = {}
        self.codes: dict[int, int] = {}
        self.paths: list[str] = []
        self.ports: dict[int, socket.socket] = {}
        self.ending = False

    # -- the loop

    def run(self, wakeup_fd: int) -> None:
        assert self.line is not None
        pending = b""
        while not self.ending:
            fds = [wakeup_fd]
            if self.line is not None:
                fds.append(self.line.fileno())
            if self.parent_fd is not None:
                fds.append(self.parent_fd)
            ready, _, _ = select.select(fds, [], [])
            if wakeup_fd in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup_fd, 4096)
                self.reap()
            if self.line is not None and self.line.fileno() in ready:
                pending = self.serve(pending)
            elif self.parent_fd is not None and self.parent_fd in ready:
                self.ending = True
        self.end_all()

    def serve(self, pending: bytes) -> bytes:
        line = self.line
        assert line is not None
        try:
            data = line.recv(65536)
        except OSError:
            data = b""
        if not data:
            line.close()
            self.line = None
            self.ending = True
            return b""
        *lines, rest = (pending + data).split(b"\n")
        for text in lines:
            request = json.loads(text)
            try:
                answer = getattr(self, "do_" + request.pop("op"))(**request)
            except (OSError, RuntimeError) as error:
                answer = {"error": str(error)}
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(answer).encode() + b"\n")
        return rest

    # -- requests

    def do_remove(self, path: str) -> dict[str, Any]:
        self.paths.append(path)
        return {}

    def do_spawn(self, **request: Any) -> dict[str, Any]:
        pid = spawn(**{k: request[k] for k in ("argv", "env", "cwd", "output", "uid", "gid", "end_signal")})
        self.children[pid] = request
        return {"pid": pid}

    def do_poll(self, pid: int) -> dict[str, Any]:
        self.reap()
        return {"code": self.codes.get(pid)}

    def do_signal(self, pid: int, signal: int) -> dict[str, Any]:
        if pid in self.children:
            os.kill(pid, signal)
        return {}

    def do_kill(self, pid: int) -> dict[str, Any]:
        self.kill_tree(pid)
        return {"code": self.codes.get(pid)}

    def do_port(self, port: int | None) -> dict[str, Any]:
        if port is not None:
            return {"port": port if port in self.ports or self.claim(port) else None}
        for _ in range(PORT_TRIES):
            chosen = random.randrange(*PORTS)
            if chosen not in self.ports and self.claim(chosen):
                return {"port": chosen}
        return {"port": None}

    def do_detach(self) -> dict[str, Any]:
        if self.parent_fd is not None:
            os.close(self.parent_fd)
            self.parent_fd = None
        self.line = None
        return {}

    def do_quit(self) -> dict[str, Any]:
        self.end_all()
        self.ending = True
        return {}

    # -- ports

    def claim(self, port: int) -> bool:
        """Reserve `port` against other sandboxes (by a name the kernel frees with the process) and
        see that nobody listens there."""
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0tailrace-sandbox-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            name.close()
            return False
        self.ports[port] = name
        return True

    # -- processes

    def reap(self) -> None:
        """Collect every child that has ended; orphans of servers come to this process as well."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.children:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
                remove_shared_memory(self.children.pop(pid).get("pid_file"))

    def kill_tree(self, pid: int) -> None:
        if pid not in self.children:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        family = [pid, *descendants(pid)]
        for member in family:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGKILL)
        self.wait_gone(family, KILL_WAIT_S)

    def wait_gone(self, pids: list[int], limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while True:
            self.reap()
            if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)

    def end_all(self) -> None:
        servers = dict(self.children)
        for pid, request in servers.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, request["end_signal"])
        deadline = time.monotonic() + max((r["end_wait_s"] for r in servers.values()), default=0)
        for pid in servers:
            if not self.wait_gone([pid], max(0.0, deadline - time.monotonic())):
                self.kill_tree(pid)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.wait_gone(descendants(os.getpid()), KILL_WAIT_S)
        for path in self.paths:
            remove(path)
        self.paths.clear()


def spawn(
    *,
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    output: str,
    uid: int | None,
    gid: int | None,
    end_signal: int,
) -> int:
    """Fork and exec one server; OSError when it cannot be executed."""
    guardian = os.getpid()
    report_r, report_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(null, 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(cwd)
            if uid is not None and gid is not None:
                os.setgroups([gid])
                os.setgid(gid)
                os.setuid(uid)
            # After setuid, which clears it.
            libc.prctl(PR_SET_PDEATHSIG, end_signal, 0, 0, 0)
            if os.getppid() != guardian:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.execve(argv[0], argv, env)
        except (OSError, ValueError, TypeError) as error:
            os.write(report_w, str(error).encode())
        finally:
            os._exit(127)
    os.close(report_w)
    with open(report_r, "rb") as report:
        problem = report.read().decode()
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem)
    return pid


def descendants(root: int) -> list[int]:
    """Process ids below `root`, from one pass over /proc."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8") as stat:
                parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
    found: list[int] = []
    level = [root]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level]
        found += level
    return found


def remove(path: str) -> None:
    """Remove a file or a folder; again if a process that is just going adds a file meanwhile."""
    for _ in range(REMOVE_TRIES):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if not os.path.lexists(path):
            return
        time.sleep(POLL_S)


def remove_shared_memory(pid_file: str | None) -> None:
    """Remove the System V segment that a killed PostgreSQL has left (line 7 of postmaster.pid)."""
    if pid_file is None:
        return
    with contextlib.suppress(OSError, ValueError, IndexError), open(pid_file, encoding="utf-8") as lines:
        shmid = int(lines.read().split("\n")[6].split()[1])
        libc.shmctl(shmid, IPC_RMID, None)


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    wakeup_r, wakeup_w = os.pipe()
    os.set_blocking(wakeup_r, False)
    os.set_blocking(wakeup_w, False)
    signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
    guardian = Guardian(line, int(sys.argv[2]))

    def end(_number: int, _frame: object) -> None:
        guardian.ending = True

    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.umask(0o077)
    guardian.run(wakeup_r)


if __name__ == "__main__":
    main()
