"""The proof that a target equals its source: digests of ranges, the rows that differ, and their repair."""
