"""Embedding functions that come with Tailrace: `embed: "consumers.targets.embedding:wordllama"`.

The model is loaded once a process, from its wheel: nothing is downloaded.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError

WORDLLAMA_DIMENSIONS = 256


def wordllama(texts: list[str]) -> Any:
    """256 dimensions, of WordLlama, a small model of word vectors: pip install 'tailrace[embeddings]'."""
    return _wordllama().embed(texts, norm=True)


@cache
def _wordllama() -> Any:
    try:
        module = importlib.import_module("wordllama")
    except ImportError as error:
        raise ConfigError(
            "the embedding function wordllama needs its package", fix="pip install 'tailrace[embeddings]'"
        ) from error
    folder = Path(str(module.__file__)).parent
    return module.WordLlama.load(cache_dir=folder, disable_download=True)
