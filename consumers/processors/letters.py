"""Dead letters of a processor: in the format of targets' ones, in the transaction that parks the key."""

from __future__ import annotations

import logging
from collections.abc import Callable

from consumers.apply.checkpoint import Place
from consumers.apply.dead_letters import DeadLetter
from consumers.processors.context import Version
from consumers.processors.names import Names
from consumers.processors.outbox import Outbox
from consumers.processors.parked import Item
from consumers.processors.plan import Work

log = logging.getLogger(__name__)


class Letters:
    """Of one task."""

    def __init__(
        self, names: Names, number: int, outbox: Outbox, payload_bytes: int, clock_us: Callable[[], int]
    ) -> None:
        """`payload_bytes`: a larger payload is left out."""
        self._names = names
        self._number = number
        self._outbox = outbox
        self._payload_bytes = payload_bytes
        self._clock_us = clock_us

    def write(
        self,
        work: Work | Item,
        code: str,
        message: str,
        version: Version,
        payload: bytes,
        action: str,
        decodes: bool,
    ) -> None:
        names = self._names
        letter = DeadLetter(
            Place(names.processor, work.topic, self._number), work.offset, work.key, work.topic,
            code, message, version, payload, action, decodes=decodes,
        )  # fmt: skip
        value = letter.dump(names.processor, self._clock_us(), self._payload_bytes)
        self._outbox.place(names.dead_letters, 0, work.key, value)
        log.error(
            "%s: key %s of %s is %s: %s [%s] (%s[%d]@%d)",
            names.dead_letters, work.key.decode(errors="replace"), work.topic, action, message, code,
            work.topic, self._number, work.offset,
        )  # fmt: skip
