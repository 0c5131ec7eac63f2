"""Arguments of helpers and of `@agent`: what is none is refused where it is written, with its cure. Pure.

Owns how an argument looks; what it means belongs to the helper. Each raises ConfigError, of which `where`
names the argument, and gives the argument in the form that operators take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from streamer.errors import ConfigError


def column(given: object, where: str) -> str:
    if isinstance(given, str) and given:
        return given
    raise ConfigError(
        f"{given!r} is no column's name", where=where, fix='write it as a text, such as "total"'
    )


def text(given: object, where: str) -> str:
    """It may be empty."""
    if isinstance(given, str):
        return given
    raise ConfigError(f"{given!r} is no text", where=where, fix='write it in quotes, such as "_"')


def number(given: object, where: str) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    raise ConfigError(f"{given!r} is no whole number", where=where, fix="write it without quotes, such as 3")


def columns(given: object, where: str) -> tuple[str, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        shown = f'["{given}"]' if isinstance(given, str) and given else '["total"]'
        raise ConfigError(
            f"{given!r} is no list of columns", where=where, fix=f"write a list, such as {shown}"
        )
    found = tuple(column(each, where) for each in given)
    # Every process must name them in one order, and a set has another one in each.
    return tuple(sorted(found)) if isinstance(given, set | frozenset) else found


def mapping(given: object, where: str, example: str) -> dict[str, str]:
    """Of texts; `example`: what one is."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{given!r} is no mapping", where=where, fix=f"write a dict, such as {example}")
    return {column(name, where): column(value, where) for name, value in given.items()}


def apart(names: Iterable[str], where: str) -> None:
    """Names of derived columns."""
    found: set[str] = set()
    for name in names:
        if name in found:
            raise ConfigError(
                f"{name} would be two columns", where=where, fix="give each column a name of its own"
            )
        found.add(name)


def types(given: object, where: str) -> dict[str, str]:
    """Of derived columns; None: none are declared."""
    return {} if given is None else mapping(given, where, '{"total": "numeric(12,2)"}')


def per_row(given: Any, where: str, example: str, *, gives_rows: bool = False) -> Any:
    """A function that is called with each row. `example`: a call with one; `gives_rows`: it may `yield`."""
    if inspect.iscoroutine(given):
        given.close()  # else Python warns of it, too: nobody awaits it
    if not callable(given):
        shown = f"lambda row: row[{given!r}]" if isinstance(given, str) and given else example
        raise ConfigError(
            f"{given!r} is no function", where=where, fix=f"write a function of one row, such as {shown}"
        )
    is_plain = inspect.isroutine(given) or isinstance(given, type | partial)
    called = given if is_plain else type(given).__call__
    what = ""
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        what, fix = (
            "is async: nobody awaits what it gives",
            "write `def` in place of `async def`, or an `@agent`",
        )
    elif inspect.isgeneratorfunction(called) and not gives_rows:
        what, fix = "has `yield`, and gives no value", "write `return` in place of `yield`"
    elif not takes_one(given):
        what, fix = "does not take one row", f"let it take one argument, such as {example}"
    if what:
        raise ConfigError(f"{name_of(given)} {what}", where=where, fix=fix)
    return given


def takes_one(given: Callable[..., object]) -> bool:
    """Of a builtin that does not tell its arguments: it is not known, and allowed."""
    try:
        signature = inspect.signature(given)
    except ValueError:
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def name_of(given: object) -> str:
    name: str = getattr(given, "__qualname__", type(given).__name__)
    return name
