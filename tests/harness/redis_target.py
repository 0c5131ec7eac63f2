"""Configs that lead a feeder's topics into a Redis target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from streamer.config import Config, parse
from tests.harness.feeder import Feeder

Flows = dict[str, dict[str, Any]]


def redis_config_text(feeder: Feeder, url: str, flows: Flows | None = None) -> str:
    """`flows`: name -> keys; all tables as hashes to schema `mirror` unless given."""
    wanted = flows or {"mirror": {}}
    source = {"kind": "postgres", "url": "postgresql://nobody@localhost/none", "tables": {"public.*": {}}}
    base = {"from": f"{feeder.source}.public.*", "to": "copy.mirror"}
    return yaml.safe_dump(
        {
            "name": feeder.name,
            "kafka": {"brokers": feeder.brokers},
            "sources": {feeder.source: source},
            "targets": {"copy": {"kind": "redis", "url": url}},
            "flows": {name: {**base, **keys} for name, keys in wanted.items()},
        }
    )


def redis_config_of(feeder: Feeder, url: str, flows: Flows | None = None) -> Config:
    return parse(redis_config_text(feeder, url, flows), Path("tailrace.yaml"), environ={})
