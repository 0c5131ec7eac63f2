"""What the suite must know of a kind of target beside the Target protocol."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from consumers.apply.checkpoint import Place
from consumers.targets.base import Target
from consumers.targets.registry import make_target
from streamer.config import Config, parse

Row = dict[str, Any]
SOURCE = "shop"
SCHEMA = "mirror"
NAME = "acme"
SOURCE_CONFIG = {"kind": "postgres", "url": "postgresql://u@localhost/none", "tables": {"public.*": {}}}


class Adapter(ABC):
    """One empty store. `address` is all that another process needs to reach it."""

    abilities: ClassVar[frozenset[str]] = frozenset({"keyless", "durable", "tables", "schemas", "ddl"})
    # "module:function" of the target, called between the rows' writes and the checkpoint's: the suite
    # puts a kill -9 in its place, in a process of its own. None: nothing outlives the process anyway.
    killed_at: ClassVar[str | None] = None

    beside: ClassVar[tuple[str, ...]] = ()  # columns of its own, without which a table is not as it was
    tells_versions: ClassVar[bool] = True  # of single keys
    writes_whole: ClassVar[bool] = True  # of a batch with a refused row, nothing
    sweeps: ClassVar[int] = 1  # until all of the store was looked at
    dearness: ClassVar[int] = 1  # of a run of the machine: so many times fewer are run

    name = NAME  # of the config; where Kafka is shared, one that no other test has
    brokers = "localhost:9092"  # of nobody, unless the test has one

    def __init__(self, address: str) -> None:
        self.address = address

    @classmethod
    @asynccontextmanager
    @abstractmethod
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        """Over a fresh store; `request` gives the fixtures of tests/servers.py."""
        yield cls("")

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The target's part of the config file."""

    def flow(self, keys: dict[str, Any]) -> dict[str, Any]:
        """What a flow to this kind needs beside `keys`."""
        return keys

    @abstractmethod
    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        """By the store's own client. No such table: no rows."""

    @abstractmethod
    async def cut(self) -> None:
        """End every line to the store, from its side; new ones are let in."""

    @abstractmethod
    async def refuse(self, table: str, columns: Sequence[str], word: str) -> None:
        """From now on the store refuses rows of the table whose `name` is `word`. The table is not there
        yet, and will get the columns `id` (the key), and text for the others."""

    @abstractmethod
    async def accept(self, table: str) -> None:
        """It takes them again."""

    @abstractmethod
    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        """A table of somebody else's: `id` is the key, a number; the other columns are text."""

    async def drop_table(self, table: str) -> None:
        """Of kinds with the ability `ddl`: as a person would."""
        raise NotImplementedError

    @abstractmethod
    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        """Set the checkpoints to an earlier offset, as a person would who wants all of it again."""

    @abstractmethod
    async def tombstones(self) -> int:
        """How many are kept."""

    async def before_the_kill(self, *args: Any) -> None:
        """Called with the arguments of `killed_at`: the rows' writes must have reached the store."""
        return

    # For the suite

    def config(
        self,
        flows: dict[str, dict[str, Any]] | None = None,
        *,
        source: str = SOURCE,
        processors: dict[str, dict[str, Any]] | None = None,
    ) -> Config:
        """`flows`: name -> more keys of a flow; one for every table of the source unless given."""
        wanted = {"mirror": {}} if flows is None else flows
        base = {"from": f"{source}.public.*", "to": f"copy.{SCHEMA}"}
        text = yaml.safe_dump(
            {
                "name": self.name,
                "kafka": {"brokers": self.brokers},
                "sources": {source: SOURCE_CONFIG},
                "processors": processors or {},
                "targets": {"copy": self.settings()},
                "flows": {name: self.flow({**base, **keys}) for name, keys in wanted.items()},
            }
        )
        return parse(text, Path("tailrace.yaml"), environ={})

    def target(self, config: Config, group: str = f"{NAME}.copy") -> Target:
        """A session, not opened."""
        return make_target(config.targets["copy"], group, list(config.flows.values()))


def fresh_name() -> str:
    return f"c{uuid.uuid4().hex[:10]}"
