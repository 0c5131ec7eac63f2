"""The smallest config file that a control database works with, and the databases that it is tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import Config, load

SOURCE = "sources: {shop: {kind: postgres, url: 'postgresql://127.0.0.1/shop', tables: {'*.*': {}}}}\n"


def control_config(
    folder: Path, more: str = "", *, url: str = "sqlite:///control.db", enabled: bool = True
) -> Config:
    """`more`: further keys of the file, as YAML. Nobody connects to its source."""
    path = folder / "tailrace.yaml"
    control = f"control: {{url: '{url}', enabled: {str(enabled).lower()}}}\n"
    path.write_text(f"name: acme\n{control}{SOURCE}{more}", encoding="utf-8")
    return load(path)


@pytest.fixture(params=["sqlite", "postgres"])
def control_url(request: pytest.FixtureRequest, database: str) -> str:
    """Of an empty control database, in each store that it may be in."""
    return "sqlite:///control.db" if request.param == "sqlite" else database
