"""What every test here has: apply works at a test's pace, and processes start without imports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from consumers.apply import feed, keeping, reading
from tests.harness.given import execute
from tests.harness.pipeline import Pipeline
from tests.harness.starter import Starter


@pytest.fixture(autouse=True)
def apply_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds between reports, looks at the target and moves of an idle checkpoint are long for a test."""
    monkeypatch.setattr(keeping, "KEEP_S", 0.1)
    monkeypatch.setattr(keeping, "LOOK_S", 0.3)
    monkeypatch.setattr(keeping, "PASS_AFTER_S", 60.0)  # on a busy machine what frees a row comes late
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


@pytest.fixture
async def modest_database(target_database: str, kafka_name: str) -> AsyncIterator[str]:
    """The target for a role that may not set session_replication_role; it owns the schema `own`."""
    role = f"r_{kafka_name}"
    await execute(
        target_database,
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$",
    )
    parts = conninfo_to_dict(target_database)
    yield f"postgresql://{role}:x@{parts['host']}:{parts['port']}/{parts['dbname']}"
    await execute(target_database, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")
