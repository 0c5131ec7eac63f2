"""Helpers that processors are made of: pure operators over a Context."""
