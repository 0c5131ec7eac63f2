"""Which values of a test's matrix the fast suite runs; the others are for `make thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def corners(values: Iterable[Any], *fast: Any) -> list[Any]:
    """All of `values`, for `parametrize`: those not in `fast` are marked `thorough`.

    A tuple (of a matrix with several names) goes by its first item.
    """
    made = []
    left = list(fast)
    for value in values:
        first, rest = (value[0], value) if isinstance(value, tuple) else (value, (value,))
        if first in left:
            left.remove(first)
            made.append(value)
        else:
            made.append(pytest.param(*rest, marks=pytest.mark.thorough))
    assert not left, f"not in the matrix: {left}"
    return made
