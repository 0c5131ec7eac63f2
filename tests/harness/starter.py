"""Processes of Tailrace that need not import: forks of one that has imported everything and run nothing.

An import costs a command 0.3 to 0.6 s of CPU, as much as all that most of them do. A fork is a process like
any other: a pid of its own to kill, its own memory, files, folder and environment, and `consumers.cli.main`
is all that it runs. It works at a test's pace: `AT_PACE`. What a bare `python -m consumers` does is shown by
the tests of acceptance/, which start nothing here.

    test --(orders, with the fork's files)--> zygote --fork--> keeper --fork--> the command
    test <------------------(pid, then exit code, on the order's pipe)-------- keeper

Each ends with the one to its left, however that ends.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import IO, Any

REPO = Path(__file__).parents[2]
ORDER_BYTES = 2**17  # the command line and the environment, which containers make large
PR_SET_PDEATHSIG = 1

COMMANDS = (
    *("apply", "backfill", "backfill_runs", "dead_letters", "gates", "jobs", "process"),
    *("reconcile", "replay", "run", "serve", "show", "why"),
)
LOADED = (
    *(f"consumers.commands.{name}" for name in COMMANDS),
    "consumers.processors.worker",
    "consumers.targets.postgres",
    "streamer.commands.capture",
    "streamer.postgres.source",
)
AT_PACE: dict[str, dict[str, float]] = {
    "consumers.apply.keeping": {"KEEP_S": 0.2, "LOOK_S": 0.5},
    "consumers.apply.reading": {"IDLE_MOVE_S": 0.2, "POLL_MS": 50},
    "consumers.apply.feed": {"FETCH_WAIT_MS": 100, "METADATA_AGE_MS": 300, "HEARTBEAT_MS": 300},
    "consumers.processors.worker": {"FOLLOW_S": 0.2},
    "consumers.processors.task": {"IDLE_COMMIT_S": 0.2},
    "streamer.postgres.stream": {"LOOK_S": 0.2, "INSPECT_S": 0.5, "IDLE_FLUSH_S": 0.2},
}
"""Seconds between two looks, where nothing comes: long for a test."""


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class Started:
    """As `subprocess.Popen` shows a process."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self.returncode: int | None = None
        self.pid = int(self._line())

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            piece = os.read(self._answers, 1)
            assert piece, "the starter has ended"
            found += piece
        return found

    def fileno(self) -> int:
        """Readable when the process has ended."""
        return self._answers

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._line())
            os.close(self._answers)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Starter:
    """The zygote, as a test sees it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", "tests.harness.starter", str(theirs.fileno()), str(os.getpid())]
        self._zygote = subprocess.Popen(words, cwd=REPO, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, words: list[str], output: IO[bytes]) -> Started:
        """`tailrace WORDS` in the repository's folder; stdout and stderr go to `output`."""
        order = json.dumps({"words": words, "folder": str(REPO), "environment": dict(os.environ)})
        answers, pipe = os.pipe()
        try:
            socket.send_fds(self._line, [order.encode()], [output.fileno(), pipe])
        finally:
            os.close(pipe)
        return Started(answers)

    def close(self) -> None:
        self._line.close()
        self._zygote.wait()


def serve(line: socket.socket) -> None:
    """Forks return from it, into their end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's to wait for
    zygote = os.getpid()
    while True:
        order, files, _, _ = socket.recv_fds(line, ORDER_BYTES, 2)
        if not order:
            return
        if os.fork() == 0:
            die_with_parent(zygote)
            line.close()
            keep(json.loads(order), *files)
            return
        for file in files:
            os.close(file)


def keep(order: dict[str, Any], output: int, answers: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(keeper)
        os.close(answers)
        become(order, output)
        return
    os.close(output)
    os.write(answers, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(order: dict[str, Any], output: int) -> None:
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()
    sys.argv = ["tailrace", *order["words"]]
    for module, values in AT_PACE.items():
        for name, value in values.items():
            assert hasattr(import_module(module), name), (module, name)
            setattr(import_module(module), name, value)
    from consumers.cli import main

    try:
        main()
    except SystemExit as ended:
        end(ended.code)


def end(code: object) -> None:
    """As an interpreter ends, but for taking its modules apart, which would copy all that the forks share."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    for module in LOADED:
        import_module(module)
    gc.collect()
    gc.freeze()  # a collection would write to, and so copy, what the forks share
    serve(socket.socket(fileno=int(sys.argv[1])))
