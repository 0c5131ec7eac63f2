"""docs/configuration.md says the truth about every key of what is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from streamer.config import (
    Batch,
    Chunk,
    DeadLetterLimits,
    Defaults,
    Embedding,
    Flow,
    Kafka,
    PostgresSource,
    PostgresTarget,
    RedisEntity,
    RedisSource,
    Security,
    Slot,
    Topics,
    VectorTarget,
)
from streamer.config.base import NAME_KEY, Model
from streamer.config.sources import Publication, Snapshot
from streamer.config.units import parse_duration, parse_share, parse_size

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
PARTS: list[tuple[str, type[Model]]] = [
    ("", Kafka),
    ("security.", Security),
    ("topics.", Topics),
    ("", Defaults),
    ("", PostgresSource),
    ("slot.", Slot),
    ("publication.", Publication),
    ("snapshot.", Snapshot),
    ("", RedisSource),
    ("", RedisEntity),
    ("", PostgresTarget),
    ("batch.", Batch),
    ("dead_letters.", DeadLetterLimits),
    ("", VectorTarget),
    ("embedding.", Embedding),
    ("", Flow),
    ("chunk.", Chunk),
]


@pytest.mark.parametrize(("prefix", "model"), PARTS, ids=lambda x: getattr(x, "__name__", None))
def test_every_key_is_on_the_page(prefix: str, model: type[Model]) -> None:
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key in (NAME_KEY, "kind") or isinstance(field.default, Model):
            continue
        assert re.search(rf"`{re.escape(prefix)}{re.escape(key)}[`:]", PAGE) or key in (
            "slot",
            "publication",
        ), key


@pytest.mark.parametrize(("prefix", "model"), PARTS, ids=lambda x: getattr(x, "__name__", None))
def test_every_default_on_the_page_is_true(prefix: str, model: type[Model]) -> None:
    for name, field in model.model_fields.items():
        row = re.search(
            rf"^\| `{re.escape(prefix + (field.alias or name))}` \| `([^`]+)` \|", PAGE, re.MULTILINE
        )
        if row is None or field.default in (PydanticUndefined, None):
            continue
        said: object = row[1]
        if name.endswith("_s"):
            said = parse_duration(row[1])
        elif name.endswith("bytes"):
            said = parse_size(row[1])
        elif isinstance(field.default, bool):
            said = row[1] == "true"
        elif isinstance(field.default, float):
            said = parse_share(row[1])
        elif isinstance(field.default, int):
            said = int(row[1])
        assert said == field.default, name
