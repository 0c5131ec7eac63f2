"""What is parked in a processor, as the commands about dead letters see a target's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from consumers.apply.checkpoint import Place
from consumers.apply.queues import Key
from consumers.commands.parked_screen import Queues
from consumers.processors.operations import ParkedKey, ask, parked_keys
from consumers.targets.base import Parked
from streamer.changes.topics import is_inner
from streamer.config import Config


class ParkedInProcessor:
    """Read in the changelog; asked for through the control topic. `config` names the brokers."""

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._name = name
        self._known: dict[Key, ParkedKey] = {}
        self._asked: dict[Key, tuple[str, str, tuple[int, int]]] = {}  # what, by whom, of which head

    async def parked(self) -> Queues:
        """Raises KafkaUnavailable."""
        found = await parked_keys(self._config, self._name)
        self._known = {Key(self._place(each), each.key): each for each in found}
        return {key: self._entries(key, each) for key, each in self._known.items()}

    async def ask(self, keys: Iterable[Key], action: Literal["retry", "discard"], who: str) -> None:
        wanted = [self._known[key] for key in keys if key in self._known]
        await ask(self._config, self._name, action, wanted)
        for each in wanted:
            self._asked[Key(self._place(each), each.key)] = action, who, _head(each)

    def _place(self, each: ParkedKey) -> Place:
        return Place(self._name, each.topic, each.partition)

    def _entries(self, key: Key, each: ParkedKey) -> list[Parked]:
        """The worker keeps no mark of what was asked: it is open as long as the first change is as it was."""
        asked, who, head = self._asked.get(key, ("", "", (0, 0)))
        waits = bool(asked) and _head(each) == head
        inner = is_inner(each.topic)
        schema, _, table = each.topic.rpartition(".")
        entries = []
        for item in each.items:
            first = item is each.items[0]
            attempts = item.attempts
            if first and asked and not waits:
                attempts = max(attempts, head[1] + 1)  # it is another change of the key that is refused now
            entries.append(
                Parked(
                    key.place,
                    each.key,
                    item.number,
                    item.offset,
                    item.version,
                    item.value or b"",
                    item.value is not None and not inner,
                    schema,
                    table,
                    False,
                    item.code,
                    item.message,
                    attempts,
                    item.at_us,
                    asked if first and waits else "",
                    who if first and waits else "",
                )
            )
        return entries


def _head(each: ParkedKey) -> tuple[int, int]:
    return each.items[0].number, each.items[0].attempts
