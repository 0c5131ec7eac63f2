"""Fixtures come as plugins, one module a subject."""

from __future__ import annotations

import os
import sys

# Images of containers often set it; every process of a test would compile again all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = [
    "tests.servers",
    "tests.harness.capture",
    "tests.harness.publisher",
    "tests.harness.redis_capture",
    "tests.harness.redis_cluster",
    "tests.harness.redis_sentinel",
    "tests.harness.recorder",
    "tests.harness.plugin",
]
