"""An embedding function that says what it was asked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from types import ModuleType

import pytest

DIMENSIONS = 3


@dataclass
class Recorder:
    """The functions of a module that a config names; they say what they were asked."""

    texts: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    down: Exception | None = None
    poison: BaseException = field(default_factory=lambda: ValueError("I do not read that"))
    goes_on: Event | None = None  # until it is set no call ends
    dimensions: int = DIMENSIONS
    missing: int = 0
    zero: bool = False

    def embed(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        if self.goes_on is not None:
            self.goes_on.wait(60)
        if self.down is not None:
            raise self.down
        if any("poison" in text for text in texts):
            raise self.poison
        self.texts += texts
        return [[0.0 if self.zero else float(len(text))] * self.dimensions for text in texts][self.missing :]

    def doubled(self, texts: list[str]) -> list[list[float]]:
        """Another model."""
        return [[2 * value for value in vector] for vector in self.embed(texts)]

    async def slowly(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return self.embed(texts)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    module = ModuleType("recorded")
    module.__dict__.update(embed=made.embed, slowly=made.slowly, doubled=made.doubled, number=7)
    sys.modules["recorded"] = module
    yield made
    del sys.modules["recorded"]
