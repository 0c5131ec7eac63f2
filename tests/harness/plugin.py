"""Fixtures of acceptance, crash and bench: a pipeline between a fresh source and a fresh target."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streamer.sandbox import Sandbox
from tests.harness.log import LogChecker
from tests.harness.pipeline import Pipeline


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
def servers(postgres_binaries: Path | None, kafka_archive: None) -> Iterator[Sandbox]:
    """Two Postgres and a Kafka of the test's own, to kill and stop."""
    with Sandbox(postgres=2, kafka=1, fast=True, proxied=True, binaries=postgres_binaries) as sandbox:
        yield sandbox
