"""Any run of changes leaves the chunks of what the source has: the conformance machine with texts that are
cut, and are made of a value that updates do not always have."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.conformance.adapters.pgvector import PgvectorAdapter
from tests.conformance.test_machine import (
    EXAMPLES,
    SLOW_EXAMPLES,
    SLOW_STEPS,
    STEPS,
    THOROUGH_EXAMPLES,
    THOROUGH_STEPS,
    run,
)


class ChunkedAdapter(PgvectorAdapter):
    """One or two chunks a row; `name` and `note` are in the text alone."""

    text: ClassVar[str] = "{name} {note}"
    chunk: ClassVar[dict[str, int] | None] = {"tokens": 1}


@pytest.mark.thorough
def test_any_run_leaves_the_chunks_of_what_the_source_has(target_database: str) -> None:
    run(ChunkedAdapter(target_database), EXAMPLES, STEPS)


@pytest.mark.thorough
def test_any_of_many_runs_leaves_the_chunks_of_what_the_source_has(target_database: str) -> None:
    run(ChunkedAdapter(target_database), THOROUGH_EXAMPLES, THOROUGH_STEPS)


@pytest.mark.slow
def test_any_long_run_leaves_the_chunks_of_what_the_source_has(target_database: str) -> None:
    run(ChunkedAdapter(target_database), SLOW_EXAMPLES, SLOW_STEPS)
