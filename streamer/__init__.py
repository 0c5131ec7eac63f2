"""Capture: sources to Kafka. Imports nothing of `consumers`."""

from pathlib import Path

__version__ = "0.1.0"

DEFAULT_PATH = Path("tailrace.yaml")
"""The config file that commands read when none is named."""
SANDBOX_MOST = 16  # servers of a kind in a sandbox
