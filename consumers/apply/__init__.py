"""Kafka -> targets: read, decode, fold to the last write per key, apply with the checkpoint."""
