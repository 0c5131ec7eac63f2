"""The model of this example: WordLlama, 256 dimensions, out of its wheel and without a network.

A function of your own looks the same: texts in, one vector a text out. It may be `async def`, call an HTTP
API or a GPU; raise ConnectionError or TimeoutError when the model is away, and it is tried again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import wordllama


@cache
def model() -> Any:
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


def embed(texts: list[str]) -> Any:
    return model().embed(texts, norm=True)
