"""The process of one job: it ends with its scheduler, and is a command, or calls a function.

    python -m consumers.schedule.launch PARENT command WORD...
    python -m consumers.schedule.launch PARENT function MODULE:NAME FOLDER JOB ARGUMENTS

What a function returns is printed, when it is not None; its error is on stderr, and the exit code 2.
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

from streamer.cli import die_with
from streamer.errors import EXIT_OK, EXIT_RUNTIME, EXIT_USAGE, ConfigError
from streamer.functions import load_function


def main(words: list[str]) -> int:
    parent, kind, *rest = words
    die_with(int(parent))
    if kind == "command":
        os.execv(rest[0], rest)  # the kernel's promise to end it outlives this
    path, folder, job, arguments = rest
    try:
        function = load_function(path, Path(folder), where=f"schedules.jobs.{job}.exec")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    try:
        found = _call(function, orjson.loads(arguments))
    except Exception:  # noqa: BLE001 - whatever a user's function raises is the job's failure
        traceback.print_exc()
        return EXIT_RUNTIME
    if found is not None:
        sys.stdout.write(f"{found}\n")
    return EXIT_OK


def _call(function: Any, arguments: dict[str, Any]) -> Any:
    found = function(**arguments)
    if inspect.isawaitable(found):

        async def wait() -> Any:
            return await found

        return asyncio.run(wait())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
