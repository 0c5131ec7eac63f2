"""Which class serves a target of the config. Imports of a kind's driver happen only where it is used."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.targets.base import Target
from streamer import config as settings


def target_of(config: settings.Config, name: str) -> Target:
    """A target of the file with all of its flows, not opened yet."""
    flows = [flow for flow in config.flows.values() if flow.target == name]
    return make_target(config.targets[name], f"{config.name}.{name}", flows)


def make_target(target: settings.Target, group: str, flows: Sequence[settings.Flow]) -> Target:
    """Not opened yet. `group`: the consumer group bound to it. Raises ConfigError for a kind not built."""
    if isinstance(target, settings.PostgresTarget):
        from consumers.targets.postgres import PostgresTarget  # noqa: PLC0415

        return PostgresTarget(target, group, flows)
    if isinstance(target, settings.MemoryTarget):
        from consumers.targets.memory import MemoryTarget  # noqa: PLC0415

        return MemoryTarget(target, group, flows)
    if isinstance(target, settings.SqlTarget) and not settings.unbuilt_target(target):
        from consumers.targets.sql import SqlTarget  # noqa: PLC0415

        return SqlTarget(target, group, flows)
    if isinstance(target, settings.RedisTarget):
        from consumers.targets.redis import RedisTarget  # noqa: PLC0415

        return RedisTarget(target, group, flows)
    if isinstance(target, settings.VectorTarget):
        from consumers.targets.vectors import VectorTarget  # noqa: PLC0415

        return VectorTarget(target, group, flows)
    raise settings.unbuilt_target(target)[0].error()
