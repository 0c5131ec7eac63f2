"""The process that stands over a user's function: what that has started ends with it, wherever it has gone.

Owns the search for what a process has begun, and its end. A process may leave its session, and outlive who
began it; the kernel then gives it to the warden, so that all of them are found beneath that. The function has
a process and a session of its own: a signal to the warden's reaches the warden alone, which passes it on.

Elsewhere than on Linux there is no such promise: the function runs in the launcher itself, and a process
that has left its session is not found.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from streamer.cli import die_with

KILL_AFTER_S = 10.0  # from SIGTERM: a command confirms what it has done within it
SETTLE_S = 0.5  # what ends by itself then, as multiprocessing's tracker does, is not left behind
LEFT_KILL_S = 2.0  # from the SIGTERM of what is left behind
LOOK_S = 0.1  # while something is to end: of a grandchild that does, nobody tells the warden
GIVE_UP_S = 10.0  # after the first SIGKILL; what the kernel itself holds does not end
ROUNDS = 20  # of SIGKILL to who begins processes faster than they are found
NAMED = 5

_PR_SET_CHILD_SUBREAPER = 36
_HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


def stands_over(work: Callable[[], int]) -> int:
    """Returns `work`'s exit code, in its process and in the one that stands over it; when a signal has ended
    it, this one ends by the same."""
    if sys.platform != "linux":
        return work()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER is refused")
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    warden = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        die_with(warden)
        return work()
    code = os.waitstatus_to_exitcode(_Warden(child).wait())
    return code if code >= 0 else _end_by(-code)


def signal_all(leader: int, number: int) -> None:
    """To a process that leads a session, and all of that; SIGKILL, which it could not pass on, to all that it
    has begun. Raises ProcessLookupError: it is gone; PermissionError: it is another's."""
    if number == signal.SIGKILL:
        for _ in range(ROUNDS):
            found = beneath(leader)
            if not found:
                break
            _send(found, number)
    os.killpg(leader, number)


def beneath(leader: int) -> list[int]:
    """The living processes that it has begun, and those that they have."""
    begun: dict[int, list[tuple[int, bool]]] = {}
    for pid, parent, lives in _processes():
        begun.setdefault(parent, []).append((pid, lives))
    found, parents = [], [leader]
    while parents:
        for pid, lives in begun.get(parents.pop(), ()):
            parents.append(pid)
            if lives:
                found.append(pid)
    return found


def _processes() -> Iterator[tuple[int, int, bool]]:
    """(pid, its parent's, whether it lives); nothing where the kernel does not say."""
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with suppress(OSError, ValueError):  # it has ended meanwhile
                    state, parent = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[:2]
                    yield int(name), int(parent), state not in (b"Z", b"X")


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _name(pid: int) -> str:
    """Without its arguments, which may hold a password."""
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()} ({pid})"
    except OSError:
        return str(pid)


def _end_by(number: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the function's process has left one, if wanted
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number  # of a signal that ends nothing


class _Warden:
    """Over one child, until that and all beneath this process have ended."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._status: int | None = None
        self._tell_s: float | None = None  # what is left behind is told to end
        self._kill_s: float | None = None

    def wait(self) -> int:
        """The child's status, as waitpid has it."""
        while True:
            self._reap()
            if self._status is not None and self._is_over():
                return self._status
            if self._kill_s is not None and time.monotonic() >= self._kill_s:
                _send(beneath(os.getpid()), signal.SIGKILL)
            waits_s = LOOK_S if self._status is not None or self._kill_s is not None else 3600.0
            heard = signal.sigtimedwait(_HEARD, waits_s)
            if heard is not None and heard.si_signo != signal.SIGCHLD and self._kill_s is None:
                self._end(KILL_AFTER_S)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if found[0] == self._child:
                    self._status = found[1]
                    self._tell_s = time.monotonic() + SETTLE_S

    def _is_over(self) -> bool:
        left, now_s = beneath(os.getpid()), time.monotonic()
        if not left:
            return True
        if self._kill_s is None and self._tell_s is not None and now_s >= self._tell_s:
            names = ", ".join(map(_name, left[:NAMED])) + (", ..." if len(left) > NAMED else "")
            count = "1 process" if len(left) == 1 else f"{len(left)} processes"
            sys.stderr.write(f"it left {count} behind, ended with it: {names}\n")
            sys.stderr.flush()
            self._end(LEFT_KILL_S)
        return self._kill_s is not None and now_s >= self._kill_s + GIVE_UP_S

    def _end(self, kill_after_s: float) -> None:
        self._kill_s = time.monotonic() + kill_after_s
        _send(beneath(os.getpid()), signal.SIGTERM)
