"""Fixtures of several folders: a feeder, and a pipeline between a fresh source and a fresh target."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streamer.sandbox import Sandbox
from tests.harness.feeder import Feeder
from tests.harness.log import LogChecker
from tests.harness.pipeline import Pipeline


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", type=Path, metavar="DIR", help="Keep what the browser tests see there: docs/images."
    )


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a SQLite target keeps its copy."""
    return tmp_path / "copy.db"


@pytest.fixture
async def pipeline(
    tmp_path: Path, database: str, target_database: str, kafka: str, kafka_name: str
) -> AsyncIterator[Pipeline]:
    """Not started; everything public of the fresh source goes to schema `mirror` of the fresh target."""
    async with Pipeline(
        tmp_path, source_url=database, target_url=target_database, brokers=kafka, name=kafka_name
    ) as pipeline:
        yield pipeline


@pytest.fixture
def log_checker(pipeline: Pipeline) -> LogChecker:
    return LogChecker(pipeline.brokers, name=pipeline.name, source=pipeline.source)


@pytest.fixture
def servers(
    postgres_binaries: Path | None, kafka_archive: None, sandbox_folder: Path | None
) -> Iterator[Sandbox]:
    """Two Postgres and a Kafka of the test's own, to kill and stop."""
    with Sandbox(
        postgres=2, kafka=1, fast=True, proxied=True, binaries=postgres_binaries, dir=sandbox_folder
    ) as sandbox:
        yield sandbox
