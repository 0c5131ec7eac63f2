"""Users' agents on Faust: the app, the channel that hands out changes, and the actor of a task.

Faust runs the body and nothing else: fetching, transactions and state are the task's. A body gets its changes
one by one; asking for the next says that it is done with the one before, so that a unit ends exactly there,
and the whole batch goes through without a turn of the event loop. Ways of a stream that would hold several
changes at once are refused by name: they cannot be undone one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import faust
from faust.events import Event
from faust.types import TP, Message

from consumers.processors.agents import Agent, unit_in_hand
from consumers.processors.context import Change, Context
from streamer.errors import ConfigError, FatalError, said_by
from streamer.stopping import end_tasks

logging.getLogger("faust").setLevel(logging.WARNING)
logging.getLogger("mode").setLevel(logging.WARNING)

_REFUSED = (
    "take", "take_events", "take_with_timestamp", "noack_take", "group_by", "through", "echo", "join",
    "left_join", "inner_join", "outer_join", "combine",
)  # fmt: skip


class Units(Protocol):
    """A batch of one task, as its body goes through it."""

    def next_change(self) -> Change | None:
        """The change in hand is done, if any; the next one, or None: the batch is over."""

    def yielded(self, value: Any) -> None: ...
    def failed(self, error: BaseException) -> None:
        """The body has raised on the change in hand."""

    @property
    def in_hand(self) -> bool: ...


class Inbox(faust.Channel[Any]):
    """The channel of one actor."""

    def __init__(self, app: faust.App, **options: Any) -> None:
        super().__init__(app, **options)
        self.units: Units | None = None
        self.handed = asyncio.Event()
        self.drained = asyncio.Event()

    async def get(self, **_: Any) -> Event:
        """The next change's event; waits for a batch when one is over."""
        while True:
            units = self.units
            if units is not None:
                change = units.next_change()
                if change is not None:
                    return self._event(change)
                self.units = None
            self.handed.clear()
            self.drained.set()
            await self.handed.wait()

    def _event(self, change: Change) -> Event:
        message = Message(
            change.topic, change.partition, change.offset, change.commit_us / 1e6, 0, None, change.raw_key,
            None, None, tp=TP(change.topic, change.partition),
        )  # fmt: skip
        return Event(self.app, change.key, change, None, message)


class Changes(faust.Stream[Any]):
    """What a body iterates over; `events()`, `items()` and `current_event` are Faust's."""

    async def __aiter__(self) -> AsyncIterator[Change]:
        self._finalized = True
        inbox: Any = self.channel
        while True:
            event = await inbox.get()
            self._set_current_event(event)
            yield event.value


def _refuse(name: str) -> Any:
    def refused(self: Changes, *_: object, **__: object) -> NoReturn:
        raise ConfigError(
            f"a processor's stream has no `{name}`: a change that fails is undone alone",
            where=str(self.prefix),
            fix="iterate with `async for change in changes`; joins, groups and windows are helpers of"
            " consumers.processors",
        )

    return refused


for _name in _REFUSED:
    setattr(Changes, _name, _refuse(_name))


def make_app(name: str) -> faust.App:
    """Never started: it has no broker of its own."""
    return faust.App(name, broker="aiokafka://", store="memory://", Stream=Changes, autodiscover=False)


class Actor:
    """An agent's body for one task. A body that has raised is begun again for the next change."""

    def __init__(self, app: faust.App, agent: Agent, context: Context, *, name: str) -> None:
        self._name = name
        self._context = context
        self._inbox = Inbox(app)
        body: Any = agent.stream()
        self._agent = faust.Agent(body, app=app, name=name, channel=self._inbox)
        self._task: asyncio.Task[None] | None = None

    async def work(self, units: Units) -> None:
        """Until the batch is over. Raises what is no fault of a change."""
        inbox = self._inbox
        inbox.units = units
        inbox.drained.clear()
        inbox.handed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"agent {self._name}")
        waiting = asyncio.ensure_future(inbox.drained.wait())
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._task.done():
            self._task.result()

    async def _run(self) -> None:
        unit_in_hand.set(self._context)
        inbox = self._inbox
        while True:
            stream = Changes(inbox, app=inbox.app, prefix=self._name)
            actor = self._agent.actor_from_stream(stream, index=None, active_partitions=None)
            try:
                async with aclosing(_generator(actor)) as values:
                    async for value in values:
                        if inbox.units is not None:
                            inbox.units.yielded(value)
            except ConfigError:
                raise
            except BaseException as error:  # SystemExit of a library, too, is no stop that anybody asked for
                if self._is_given_up:
                    raise
                if not self._failed(error):
                    if isinstance(error, Exception):
                        raise
                    raise self._without_a_change(error) from error
            else:
                raise ConfigError(
                    "the agent's body has ended, and changes are left",
                    where=self._name,
                    fix="let it be `async for change in changes: ...`, without a `return` or `break`",
                )

    def _failed(self, error: BaseException) -> bool:
        units = self._inbox.units
        if units is None or not units.in_hand:
            return False
        units.failed(error)
        return True

    def _without_a_change(self, error: BaseException) -> FatalError:
        """It would end the process, or the loop of the worker, without a word."""
        return FatalError(
            f"the agent's body raised {type(error).__name__} with no change in hand: {said_by(error)}",
            where=self._name,
            fix="let it catch what it does before it asks for its first change, and between two",
        )

    @property
    def _is_given_up(self) -> bool:
        """Whether the worker has done with it: a CancelledError of the body's own is one that it raises."""
        return self._task is None or self._task.cancelling() > 0

    async def end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end_tasks(task)


def _generator(actor: Any) -> AsyncGenerator[object, None]:
    """The user's own, so that what stands in its `finally` runs when it is given up."""
    generator: AsyncGenerator[object, None] = aiter(actor)
    return generator
