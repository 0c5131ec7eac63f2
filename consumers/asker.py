"""Who asks for what a command does, as it is kept and shown: the user of its process.

A command that was asked for over HTTP runs for who asked there, and is told so by who starts it.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping

ASKED_BY = "TAILRACE_ASKED_BY"  # in the environment of such a command


def operator(environ: Mapping[str, str] = os.environ) -> str:
    asked_by = environ.get(ASKED_BY, "")
    if asked_by:
        return asked_by
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
