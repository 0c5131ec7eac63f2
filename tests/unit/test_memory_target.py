"""The memory target as docs/targets.md shows it to users: without Kafka, and what a test can make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.targets.base import RowsRefused
from consumers.targets.memory import MemoryStore, forget_memory, memory_store
from consumers.targets.registry import make_target
from consumers.testing import Log
from streamer.config import Config, parse
from streamer.errors import TargetUnavailable

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"
CONFIG = """
name: test
sources: {shop: {kind: postgres, url: "postgresql://u@localhost/none", tables: {"public.*": {}}}}
targets: {copy: {kind: memory}}
flows: {people: {from: shop.public.people, to: copy.crm}}
"""


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, environ={})


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryStore]:
    forget_memory("test", "copy")
    yield memory_store("test", "copy")
    forget_memory("test", "copy")


async def test_the_example_of_the_page_runs() -> None:
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "def test_" in b
    ]
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    await names["test_a_name_arrives_under_its_other_name"]()


async def test_an_outage_and_a_refusal(config: Config, store: MemoryStore) -> None:
    flows = list(config.flows.values())
    target = make_target(config.targets["copy"], "test.copy", flows)
    await target.open()
    log = Log("shop")
    people = log.table("people", {"id": "integer", "name": "text"})
    people.create({"id": 1, "name": "Bob"})
    store.unavailable = "under repair"
    with pytest.raises(TargetUnavailable, match="under repair"):
        await log.apply(target, flows)
    with pytest.raises(TargetUnavailable, match="under repair"):
        await target.open()
    store.unavailable = ""
    await target.open()
    store.rules["crm", "people"] = lambda row: "no Bobs" if row["name"] == "Bob" else None
    with pytest.raises(RowsRefused, match="no Bobs"):
        await log.apply(target, flows)
    store.rules.clear()
    await log.apply(target, flows)
    assert store.rows("crm", "people") == [{"id": 1, "name": "Bob"}]


async def test_a_value_of_another_kind_is_refused(config: Config) -> None:
    flows = list(config.flows.values())
    target = make_target(config.targets["copy"], "test.copy", flows)
    await target.open()
    log = Log("shop")
    log.table("people", {"id": "integer", "at": "bytea"}).create({"id": 1, "at": "no base64"})
    with pytest.raises(RowsRefused, match="'at'"):
        await log.apply(target, flows)


async def test_a_store_has_one_group(config: Config, store: MemoryStore) -> None:
    """And each config's target a store of its own."""
    assert memory_store("test", "copy") is store
    assert memory_store("test", "other") is not store
    forget_memory("test", "other")
