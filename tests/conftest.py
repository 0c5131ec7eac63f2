"""Fixtures come as plugins, one module a subject."""

from __future__ import annotations

pytest_plugins = [
    "tests.servers",
    "tests.harness.capture",
    "tests.harness.publisher",
    "tests.harness.redis_capture",
    "tests.harness.redis_cluster",
    "tests.harness.recorder",
    "tests.harness.plugin",
]
