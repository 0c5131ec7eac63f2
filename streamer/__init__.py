"""Capture: sources to Kafka. Imports nothing of `consumers`."""

__version__ = "0.1.0"
