"""The hops of a definition, checked. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.processors.agents import AgentHop
from consumers.processors.context import HOPS_LIMIT, Definition, Given, Hop
from consumers.processors.operators.contributors import Contributors
from streamer.errors import ConfigError


def hops_of(definition: Definition, given: Given, guarantee: str, *, code: str = "") -> Sequence[Hop]:
    """`code`: the import path, for messages. Raises ConfigError."""
    hops = definition.hops(given)
    where, name = f"processors.{given.processor}", code or type(definition).__name__
    if not 1 <= len(hops) <= HOPS_LIMIT:
        raise ConfigError(f"{name} has {len(hops)} hops", where=where, fix=f"give 1 to {HOPS_LIMIT}")
    if any(isinstance(hop, AgentHop) for hop in hops[1:]):
        raise ConfigError("an agent among several hops", where=where, fix="let it be a processor of its own")
    if len(hops) > 1 and guarantee != "exactly_once":
        if isinstance(hops[-1], Contributors):
            raise ConfigError(
                f"several rows may say one row of {name}, as it has a `key` of its own or several inputs,"
                " and who says it is told exactly once",
                where=f"{where}.guarantee",
                fix="write guarantee: exactly_once; or leave `key` out where it is the only input's",
            )
        raise ConfigError(
            f"{name} counts what it sees, and at_least_once would count some of it twice",
            where=f"{where}.guarantee",
            fix="write guarantee: exactly_once",
        )
    return hops
