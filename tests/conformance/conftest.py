"""Which kinds a test runs for: all that have the abilities it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conformance.adapters import ADAPTERS
from tests.conformance.adapters.base import Adapter


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(ability, ...): runs for the kinds of target that have them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "adapter" not in metafunc.fixturenames:
        return
    marks = metafunc.definition.iter_markers("needs")
    needed = {ability for mark in marks for ability in mark.args}
    kinds = [kind for kind, adapter in ADAPTERS.items() if needed <= adapter.abilities]
    metafunc.parametrize("adapter", kinds, indirect=True)


@pytest.fixture
async def adapter(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    async with ADAPTERS[request.param].ready(request) as adapter:
        yield adapter
