"""`tailrace search`: what it cannot do it says, before it connects to anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.commands.search import show
from streamer.errors import ConfigError

CONFIG = """
name: acme
sources: {shop: {kind: postgres, url: "postgresql://u@localhost/none", tables: {"public.*": {}}}}
targets:
  copy: {kind: postgres, url: "postgresql://u@localhost:1/none"}
  vectors: {kind: pgvector, url: "postgresql://u@localhost:1/vectors"}
  empty: {kind: pgvector, url: "postgresql://u@localhost:1/empty"}
flows:
  mirror: {from: "shop.public.*", to: copy}
  notes: {from: shop.public.notes, to: vectors.a, text: "{t}", embed: "one.model:embed", dimensions: 3}
  pages: {from: shop.public.pages, to: vectors.b, text: "{t}", embed: "other.model:embed", dimensions: 3}
"""


@pytest.mark.parametrize(
    ("target", "flow", "what"),
    [
        ("vektors", "", "did you mean 'vectors'?"),
        ("copy", "", "is of kind postgres, and only pgvector has texts to search"),
        ("vectors", "note", "did you mean 'notes'?"),
        ("vectors", "mirror", "there is no flow 'mirror'"),
        ("vectors", "", "say which: --flow notes or --flow pages"),
        ("empty", "", "add a flow with to: empty"),
        ("vectors", "notes", "the module 'one.model' cannot be imported"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, target: str, flow: str, what: str) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        show(path, target, "words", flow=flow, limit=3, as_json=False)
    assert what in str(caught.value)
