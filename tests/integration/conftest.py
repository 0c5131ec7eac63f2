"""What every test here has: apply works at a test's pace, and processes start without imports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from consumers.apply import feed, keeping, reading
from tests.harness.pipeline import Pipeline
from tests.harness.starter import Starter


@pytest.fixture(autouse=True)
def apply_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds between reports, looks at the target and moves of an idle checkpoint are long for a test."""
    monkeypatch.setattr(keeping, "KEEP_S", 0.1)
    monkeypatch.setattr(keeping, "LOOK_S", 0.3)
    monkeypatch.setattr(reading, "IDLE_MOVE_S", 0.1)
    monkeypatch.setattr(reading, "POLL_MS", 50)
    monkeypatch.setattr(feed, "FETCH_WAIT_MS", 50)
    monkeypatch.setattr(feed, "METADATA_AGE_MS", 200)
    monkeypatch.setattr(feed, "HEARTBEAT_MS", 200)


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def pipeline(pipeline: Pipeline, starter: Starter) -> Pipeline:
    pipeline.starter = starter
    return pipeline
