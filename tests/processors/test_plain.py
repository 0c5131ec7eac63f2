"""What leaves without an envelope: rows as they are, and an outbox's messages, each once."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from consumers.processors.changelog import COMMIT_KEY, wrote_of
from consumers.processors.helpers import flatten, outbox_router
from tests.harness.feeder import Feeder
from tests.harness.processing import config_of, processing, records_of

COLUMNS = [("id", "integer", "number"), ("price", "numeric(8,2)", "numeric")]
OUTBOX = [(name, "text", "text") for name in ("topic", "about", "body")]


async def test_a_flattened_topic_folds_to_the_table(feeder: Feeder, tmp_path: Path) -> None:
    items = await feeder.table("items", COLUMNS)
    for number in range(6):
        items.create({"id": number, "price": f"{number}.50"}, lsn=100)
    items.update({"id": 1, "price": "9.00"}, lsn=101)
    items.delete({"id": 2, "price": None}, lsn=102)
    await feeder.flush()
    async with processing(config_of(feeder, [items.topic], tmp_path), flatten()) as made:
        await made.until(lambda: made.detail.get("done") == 8, "all changes done")
        await made.stop()
    rows: dict[bytes, Any] = {}
    for record in await records_of(feeder.brokers, made.out):
        assert record.key is not None
        rows[record.key] = None if record.value is None else json.loads(record.value)
    prices = {0: "0.50", 1: "9.00", 3: "3.50", 4: "4.50", 5: "5.50"}
    wanted: dict[bytes, Any] = {b'{"id":%d}' % n: {"id": n, "price": price} for n, price in prices.items()}
    assert rows == {**wanted, b'{"id":2}': None}


async def test_an_outbox_row_is_a_message_once_and_its_delete_none(feeder: Feeder, tmp_path: Path) -> None:
    outbox = await feeder.table("outbox", [("id", "integer", "number"), *OUTBOX], partitions=1)
    for number in range(8):
        row = {
            "id": number,
            "topic": ("mail", "bills")[number % 2],
            "about": f"a{number % 3}",
            "body": f"{number}",
        }
        outbox.create(row, lsn=100 + number)
        outbox.update({**row, "body": "sent before"}, lsn=200 + number)
        outbox.delete(row, lsn=300 + number)
    await feeder.flush()
    config = config_of(feeder, [outbox.topic], tmp_path, partitions=1)
    definition = outbox_router(route="topic", key="about", payload="body")
    async with processing(config, definition) as made:
        await made.until(lambda: made.detail.get("done") == 24, "all changes done")
        await made.stop()
    sent = defaultdict(list)
    for topic in ("mail", "bills"):
        for record in await records_of(feeder.brokers, f"{made.out}.{topic}"):
            sent[topic].append((record.key, record.value))
    wanted = [(b"a%d" % (n % 3), b"%d" % n) for n in range(8)]
    assert sent == {"mail": wanted[::2], "bills": wanted[1::2]}


async def test_a_commit_says_where_it_wrote_and_not_where_others_did(feeder: Feeder, tmp_path: Path) -> None:
    """Of a thousand topics it would be a hundred kilobytes, ten times a second."""
    outbox = await feeder.table("outbox", [("id", "integer", "number"), *OUTBOX], partitions=1)
    config = config_of(feeder, [outbox.topic], tmp_path, partitions=1)
    definition = outbox_router(route="topic", key="about", payload="body")
    async with processing(config, definition) as made:
        for number, topic in enumerate(("mail", "bills", "mail")):
            outbox.create({"id": number, "topic": topic, "about": "a", "body": "b"}, lsn=100 + number)
            await feeder.flush()
            await made.until(lambda done=number + 1: made.detail.get("done") == done, "a message")
        await made.stop()
    wrote: list[set[str]] = [set()]
    for record in await records_of(feeder.brokers, f"{made.out}.__state"):
        wrote[-1] |= {place.topic.removeprefix(made.out) for place in wrote_of([(record.key, record.value)])}
        if record.key == COMMIT_KEY:
            wrote.append(set())
    assert [topics for topics in wrote if topics] == [{".mail"}, {".bills"}, {".mail"}]
