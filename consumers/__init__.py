"""Kafka to targets, and the operator's commands."""
