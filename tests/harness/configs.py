"""A config as text, small and of every kind, and what is said of a mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import parse
from streamer.errors import EXIT_USAGE, ConfigError

REFERENCE = Path(__file__).parents[2] / "config" / "tailrace.yaml"
SECRET = "hunter2-never-print"
URL = f"postgresql://app:{SECRET}@db.example:5433/shop"

ENVIRON = {
    "SHOP_URL": URL,
    "WAREHOUSE_URL": URL,
    "VECTORS_URL": URL.replace("/shop", "/vectors"),
    "GAME_REDIS_URL": f"redis://:{SECRET}@cache",
    "CACHE_URL": f"redis://:{SECRET}@cache",
    "WIKI_TOKEN": SECRET,
}

SMALL = """\
name: acme
sources:
  shop:
    kind: postgres
    url: postgresql://u:p@h/shop
    tables: {"public.*": {}}
targets:
  copy: {kind: postgres, url: postgresql://u:p@h/copy}
flows:
  mirror: {from: "shop.public.*", to: copy}
"""


def mistake(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("t.yaml"), environ=environ or {})
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)
