"""A sandbox that outlives the command which started it.

The state file (guardian, URLs with passwords; mode 600) is `sandbox.json` in the sandbox's folder,
or in the user's cache folder when that is a temporary one. The guardian removes it at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
from pathlib import Path
from typing import Any

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.jars import cache_folder
from streamer.sandbox.sandbox import OnProgress, Sandbox

STATE_FORMAT = 1
DOWN = "tailrace sandbox down"
DOWN_LIMIT_S = 60.0
"""Kept servers stop in good order, each within 30 s, side by side."""


def state_path(folder: Path | None) -> Path:
    return (folder.absolute() if folder else cache_folder()) / "sandbox.json"


def start_detached(
    folder: Path | None,
    *,
    keep: bool = False,
    postgres: int,
    valkey: int,
    kafka: int,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Start a sandbox that outlives this process and write its state file.

    Raises:
        SandboxError: one is up there already, or a server does not start.
    """
    path = state_path(folder)
    there = read_state(path)
    if there is not None:
        raise _up_already(folder, there)
    sandbox = Sandbox(
        postgres=postgres,
        valkey=valkey,
        kafka=kafka,
        dir=folder,
        keep=keep,
        on_progress=on_progress,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(sandbox.close)
        sandbox.start()
        state = leave_running(sandbox, folder)
        undo.pop_all()
    return state


def how_to_stop(folder: Path | None) -> str:
    """The command that ends the sandbox which was started with this --dir; works in any folder."""
    return f"tailrace sandbox down --dir {shlex.quote(str(folder.absolute()))}" if folder else DOWN


def _up_already(folder: Path | None, there: dict[str, Any]) -> SandboxError:
    what = f"your sandbox{' without --dir' if folder is None else ''} is up already"
    servers = there["urls"]
    running = [f"{len(servers[kind])} {kind}" for kind in ("postgres", "valkey") if servers[kind]]
    running += ["kafka"] if servers["kafka"] else []
    return SandboxError(
        f"{what} ({', '.join(running) or 'no servers'}; process {there['guardian']})",
        where=there["folder"],
        fix=f"`{how_to_stop(folder)}` ends that one; or start a second one beside it: "
        "`tailrace sandbox up --dir ANOTHER_FOLDER`",
    )


def leave_running(sandbox: Sandbox, folder: Path | None = None) -> dict[str, Any]:
    """Detach a started sandbox so that `stop_detached(folder)` ends it; returns its state."""
    path = state_path(folder)
    guardian = sandbox.guardian.pid
    state = {
        "format": STATE_FORMAT,
        "guardian": guardian,
        "started": start_time(guardian),
        "folder": str(sandbox.folder),
        "urls": sandbox.urls(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sandbox.guardian.ask("remove", path=str(path))
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(state, file)
    sandbox.detach()
    return state


def stop_detached(folder: Path | None) -> bool:
    """End the sandbox whose state file is there; False when there is none."""
    path = state_path(folder)
    state = read_state(path)
    if state is None:
        path.unlink(missing_ok=True)
        return False
    try:
        guardian = os.pidfd_open(state["guardian"])
        try:
            os.kill(state["guardian"], signal.SIGTERM)
            gone, _, _ = select.select([guardian], [], [], DOWN_LIMIT_S)
        finally:
            os.close(guardian)
    except ProcessLookupError:
        return True
    if not gone:
        raise SandboxError(
            f"the sandbox has not ended within {DOWN_LIMIT_S:.0f} s",
            where=str(path),
            fix=f"kill -9 {state['guardian']} ends it and its servers; then remove {state['folder']}",
        )
    return True


def read_state(path: Path) -> dict[str, Any] | None:
    """The state file, if the guardian that it names is the one that runs."""
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if start_time(state["guardian"]) == state["started"] else None


def start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot: with the pid it names one process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
