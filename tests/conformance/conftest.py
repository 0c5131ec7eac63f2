"""Which kinds a test runs for: all that have the abilities it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conformance.adapters import ADAPTERS
from tests.conformance.adapters.base import Adapter
from tests.harness.tiers import corners

# Its rows are written as those of postgres; the fast suite has the machine of test_vectors_chunks.py for it.
# A cluster has test_redis_cluster.py there.
THOROUGH = {"pgvector", "redis-cluster"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(ability, ...): runs for the kinds of target that have them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "adapter" not in metafunc.fixturenames:
        return
    marks = metafunc.definition.iter_markers("needs")
    needed = {ability for mark in marks for ability in mark.args}
    kinds = [kind for kind, adapter in ADAPTERS.items() if needed <= adapter.abilities]
    fast = [kind for kind in kinds if kind not in THOROUGH]
    metafunc.parametrize("adapter", corners(kinds, *fast), indirect=True)


@pytest.fixture
async def adapter(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    async with ADAPTERS[request.param].ready(request) as adapter:
        yield adapter
