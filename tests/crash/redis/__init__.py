"""Faults of every kind against the capture of a Redis source, and a judge that reads both ends by itself."""
