"""Fixtures come as plugins, one module a subject."""

from __future__ import annotations

import os
import signal
import sys

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of the property.
# The same examples each time: what fails, fails by the change. `make thorough` looks for others, and more.
settings.register_profile(
    "same",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    max_examples=50,
)
settings.register_profile("others", settings.get_profile("same"), derandomize=False, max_examples=100)
settings.load_profile("same")

# A shell starts what is in its background with SIGINT ignored, and tests press Ctrl-C in processes of theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Images of containers often set it; every process of a test would compile again all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = [
    "tests.servers",
    "tests.harness.capture",
    "tests.harness.control",
    "tests.harness.publisher",
    "tests.harness.redis_capture",
    "tests.harness.redis_cluster",
    "tests.harness.redis_sentinel",
    "tests.harness.recorder",
    "tests.harness.plugin",
]
