"""What a user's embedding function must give, and its vectors as pgvector reads them. Pure.

    def embed(texts: list[str]) -> Sequence[Sequence[float]]      or async; a numpy array does too

One vector a text, in their order, each of `dimensions` finite numbers.

    vector = '[' number (',' number)* ']'        (pgvector's README, "Vector Type")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from streamer.errors import BadRecordError, ConfigError

PROBE = "tailrace"  # a word that any model takes


def vectors_of(
    answer: Any, texts: Sequence[str], dimensions: int, *, where: str
) -> list[str | BadRecordError]:
    """A literal a text; or why its vector cannot be stored. Raises ConfigError for what is no vectors."""
    try:
        vectors = list(answer)
    except TypeError:
        raise ConfigError(
            f"it gave {type(answer).__name__}, and not a list of vectors", where=where, fix=_SHAPE
        ) from None
    if len(vectors) != len(texts):
        raise ConfigError(
            f"it was given {len(texts)} texts and gave {len(vectors)} vectors", where=where, fix=_SHAPE
        )
    return [_literal(vector, dimensions, where) for vector in vectors]


_SHAPE = "let it give one vector a text, in their order: a list of lists of floats, or a numpy array"


def _literal(vector: Any, dimensions: int, where: str) -> str | BadRecordError:
    try:
        found = len(vector)
        data = _numbers(vector)
    except (TypeError, ValueError):
        what = f"it gave {type(vector).__name__} for a text, and not numbers"
        raise ConfigError(what, where=where, fix=_SHAPE) from None
    if found != dimensions:
        raise ConfigError(
            f"it gave a vector of {found} dimensions, and the flow says dimensions: {dimensions}",
            where=where,
            fix=f"write dimensions: {found}, or name another function under `embed`",
        )
    if b"null" in data:  # NaN and the infinities
        return BadRecordError("the model gave a vector with a number that is not finite")
    return data.decode()


def _numbers(vector: Any) -> bytes:
    try:
        data = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # tensors, arrays of half floats, other sequences
        return orjson.dumps([float(number) for number in vector])
    if any(sign in data for sign in (b'"', b"[[", b"{", b"true", b"false")) or data[:1] != b"[":
        raise TypeError
    return data
