"""What a worker asks of captures by itself: rows of keys that are parked as a value is not in the log.

An UPDATE of a row's key leaves out of the log what is large and stays, and nobody has seen the row of the new
key. It is read again by the request that apply sends for its rows that are not whole, and frees the key when
it comes (see incoming). A request is in Kafka before it is taken for sent; what is parked is in the tasks'
state, so that a worker which takes a task up asks for it, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from consumers.apply.rereads import REREAD_KEYS, REREAD_S, ask_for_rows, values_of
from consumers.processors.context import Version
from consumers.processors.parked import Key, Lot
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic
from streamer.config import Config, PostgresSource
from streamer.errors import TailraceError
from streamer.status import now_us

LOOK_S = 1.0  # between two looks at what is parked: they cost nothing

log = logging.getLogger(__name__)


class Rereading:
    """Of one worker."""

    def __init__(self, config: Config, processor: str, schemas: Mapping[str, Sequence[SchemaRecord]]) -> None:
        """`schemas`: by input topic, the newest last; it grows."""
        self._config = config
        self._processor = processor
        self._schemas = schemas
        self._asked: dict[Key, Version] = {}  # of what is parked still

    async def ask(self, lots: Sequence[Lot]) -> int:
        """For rows that were not asked for yet; how many. A key is asked for once for each event that left it
        so. Raises KafkaUnavailable."""
        lacking = {key: version for lot in lots for key, version in lot.lacking.items()}
        self._asked = {key: at for key, at in self._asked.items() if lacking.get(key) == at}
        by_topic: dict[str, list[Key]] = defaultdict(list)
        for key in lacking.keys() - self._asked.keys():
            by_topic[key[0]].append(key)
        return sum([await self._ask(topic, sorted(keys), lacking) for topic, keys in by_topic.items()])

    async def _ask(self, topic: str, keys: Sequence[Key], lacking: Mapping[Key, Version]) -> int:
        if (record := self._table(topic)) is None:
            return 0
        found = {key: values for key in keys if (values := values_of(record, key[1])) is not None}
        asked = dict(islice(found.items(), REREAD_KEYS))
        if not asked:
            return 0
        rows = [(values, lacking[key]) for key, values in asked.items()]
        name = self._processor
        await ask_for_rows(self._config, record, rows, asker=name, by=f"process {name}", now_us=now_us())
        self._asked.update({key: lacking[key] for key in asked})
        log.info("%d rows of %s are not whole: they are asked for again from the source", len(rows), topic)
        return len(rows)

    def _table(self, topic: str) -> SchemaRecord | None:
        """The newest record of an input that is a table of a Postgres source; nobody else can be asked."""
        for record in reversed(self._schemas.get(topic, ())):
            is_table = isinstance(self._config.sources.get(record.source), PostgresSource)
            if is_table and data_topic(record.source, record.schema, record.table) == topic:
                return record
        return None

    async def run(self, lots: Callable[[], Sequence[Lot]]) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                asked = await self.ask(lots())
            except TailraceError as error:  # Kafka is away: the rounds say so
                log.debug("rows that are not whole not asked for: %s", error)
                asked = 1
            if asked:
                await asyncio.sleep(REREAD_S - LOOK_S)
