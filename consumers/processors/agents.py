"""Users' own bodies: the `@agent` decorator, and what an import path of the config may name.

    @agent
    async def big(changes):                       # a stream: the body decides what becomes of each change
        async for change in changes:
            if change.after and change.after["total"] > 100:
                yield change.to(after={**change.after, "big": True})

    @agent(columns={"total": "numeric"})
    async def row(change):                        # a function: the rows of a row; None: it has none
        return {"id": change.key["id"], "total": change.after["total"]}

A function's rows take the place of those that it gave for the row before: what it does not give any more is
deleted, and all of them with the row, of whose delete it is not told. A stream is told of deletes (`after` is
None), and nothing is deleted but what it yields without `after`. Pure: the Faust side is in app.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias, overload

from consumers.processors import arguments
from consumers.processors.context import Change, Context, Definition, Derived, Given, Hop, Input, Row, Table
from consumers.processors.operators.contributors import Contributors
from consumers.processors.operators.inputs import Inputs
from consumers.processors.operators.keys import Keys
from streamer.errors import ConfigError
from streamer.functions import load_object

Changes: TypeAlias = AsyncIterator[Change]
Yielded: TypeAlias = Derived | Row | Sequence[Derived | Row] | None
Body: TypeAlias = Callable[[Changes], AsyncIterator[Yielded]]
Function: TypeAlias = Callable[[Change], Awaitable[Yielded] | Yielded]

unit_in_hand: ContextVar[Context] = ContextVar("unit_in_hand")


class Agent:
    """A body with what was declared beside it: a Definition."""

    def __init__(self, body: Body | Function, columns: Mapping[str, str] | None = None) -> None:
        self.body = body
        self.declared = columns or {}
        self.is_stream = inspect.isasyncgenfunction(body)
        self.name = arguments.name_of(body)

    def columns(self, given: Given) -> Mapping[str, str]:
        """What was declared, else as the inputs' columns of the same name."""
        return {**Inputs(given).types, **self.declared}

    def hops(self, given: Given) -> Sequence[Hop]:
        """A function's rows with a key of their own, or of several inputs, are settled by a hop more (see
        contributors)."""
        shared = not self.is_stream and given.several
        own = AgentHop(self, Keys(given, self.columns, shared=shared))
        return [own, Contributors()] if shared or (given.key and not self.is_stream) else [own]

    def stream(self) -> Body:
        """The body over a stream of changes, whichever form it has."""
        body: Any = self.body
        if self.is_stream:
            return body  # type: ignore[no-any-return]

        async def rows(changes: Changes) -> AsyncIterator[Yielded]:
            async for change in changes:
                if change.after is not None:
                    given = body(change)
                    yield await given if inspect.isawaitable(given) else given

        rows.__qualname__ = self.name
        return rows


class AgentHop:
    """Stands for an agent among hops; the runtime runs it through Faust."""

    def __init__(self, agent: Agent, keys: Keys) -> None:
        self.agent = agent
        self.keys = keys

    def handle(self, record: Input, context: Context) -> None:
        raise NotImplementedError("an agent's body runs on the Faust app")


@overload
def agent(body: Body | Function, /) -> Agent: ...
@overload
def agent(*, columns: Mapping[str, str] | None = None) -> Callable[[Body | Function], Agent]: ...
def agent(
    body: Body | Function | None = None, /, *, columns: Mapping[str, str] | None = None
) -> Agent | Callable[[Body | Function], Agent]:
    """`columns`: types of derived columns, as Postgres names them, that no input's column of the same name
    has; without them they are inferred from the first values."""
    arguments.types(columns, "@agent(columns=..)")
    if body is None:
        return lambda given: agent(given) if columns is None else Agent(_checked(given), columns)
    return Agent(_checked(body))


def _checked(body: Any) -> Any:
    name = arguments.name_of(body)
    where = f"@agent {name}"
    if not inspect.isroutine(body):
        raise ConfigError(
            f"{name} is no function",
            where=where,
            fix="write `async def f(changes)` with `yield`, or `async def f(change)` with `return`",
        )
    try:
        parameters = inspect.signature(body).parameters.values()
    except ValueError:  # of a builtin, which does not tell
        return body
    takes = [p for p in parameters if p.default is p.empty]
    if len(takes) != 1 or takes[0].kind not in (takes[0].POSITIONAL_ONLY, takes[0].POSITIONAL_OR_KEYWORD):
        raise ConfigError(
            f"it takes {len(takes)} arguments, and is given one",
            where=where,
            fix="let it take `changes` (a stream, with `yield`), or one `change`",
        )
    return body


def table(name: str) -> Table:
    """A table of the task's state, inside of an agent's body."""
    try:
        return unit_in_hand.get().table(name)
    except LookupError:
        raise ConfigError(
            "a table was asked for outside of an agent's body",
            where=f"table({name!r})",
            fix="ask for it while a change is in hand: inside of the `async for`, or of the function",
        ) from None


def definition_of(code: str, *, folder: Path, where: str = "") -> Definition:
    """What "package.module:name" names; `folder` is the config's. Raises ConfigError with the cure."""
    fix = "or put it beside the config file"
    found = load_object(code, folder, where=where, folder_fix=fix, wanted=_is_definition)
    if _is_definition(found):
        return found  # type: ignore[no-any-return]
    if inspect.isroutine(found):
        what, fix = (
            "a function, and no agent",
            "write `@agent` above it (from consumers.processors import agent)",
        )
    elif type(found).__module__.split(".")[0] == "faust":
        what = f"a {type(found).__name__} of a Faust app of its own, whose guarantees are not ours"
        fix = "write `@agent` (from consumers.processors import agent) in place of `@app.agent`"
    else:
        what = f"a {type(found).__name__}, and no agent"
        fix = "name a function with `@agent` above it, or what join, aggregate, filter_ or route gives"
    raise ConfigError(f"{code!r} is {what}", where=where, fix=fix)


def _is_definition(found: Any) -> bool:
    return not inspect.isclass(found) and all(callable(getattr(found, n, None)) for n in ("hops", "columns"))
