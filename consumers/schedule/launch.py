"""The process of one job: it ends with its scheduler, and is a command, or calls a function.

    python -m consumers.schedule.launch PARENT command WORD...
    python -m consumers.schedule.launch PARENT function MODULE:NAME FOLDER JOB ARGUMENTS

What a function returns is printed, when it is not None; its error is on stderr, and the exit code 2. What it
has started is ended when it returns: by the warden.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import orjson

from consumers.schedule.warden import stands_over
from streamer.cli import die_with
from streamer.errors import EXIT_OK, EXIT_RUNTIME, EXIT_USAGE, ConfigError
from streamer.functions import load_function


def main(words: list[str]) -> int:
    parent, kind, *rest = words
    die_with(int(parent))
    if kind == "command":
        os.execv(rest[0], rest)  # the kernel's promise to end it outlives this
    path, folder, job, arguments = rest
    return stands_over(lambda: _run(path, folder, job, arguments))


def _run(path: str, folder: str, job: str, arguments: str) -> int:
    try:
        function = load_function(path, Path(folder), where=f"schedules.jobs.{job}.exec")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return _refuse(path, job)
    try:
        found = _call(function, orjson.loads(arguments))
    except Exception:  # noqa: BLE001 - whatever a user's function raises is the job's failure
        traceback.print_exc()
        return EXIT_RUNTIME
    if inspect.isgenerator(found) or inspect.isasyncgen(found):
        return _refuse(path, job)
    if found is not None:
        sys.stdout.write(f"{found}\n")
    return EXIT_OK


def _refuse(path: str, job: str) -> int:
    """Of a generator, which runs only as it is iterated."""
    error = ConfigError(
        f"{path} gives a generator: nothing of it has run",
        where=f"schedules.jobs.{job}.exec",
        fix="take `yield` out of it, or name a function that iterates it to its end",
    )
    sys.stderr.write(f"{error}\n")
    return EXIT_USAGE


def _call(function: Any, arguments: dict[str, Any]) -> Any:
    found = function(**arguments)
    if inspect.isawaitable(found):

        async def wait() -> Any:
            return await found

        return asyncio.run(wait())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
