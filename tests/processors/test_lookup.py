"""lookup on a real Kafka: a row keeps the right side of the moment when it came, also through a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from consumers.processors.helpers import lookup
from tests.harness.feeder import Feeder
from tests.harness.processing import Processing, config_of, processing

ORDERS = [(name, "integer", "number") for name in ("id", "customer_id", "total")]
CUSTOMERS = [("id", "integer", "number"), ("name", "text", "text")]


def order(id: int, customer_id: int, total: int) -> dict[str, Any]:
    return {"id": id, "customer_id": customer_id, "total": total}


def row(id: int, customer_id: int, total: int, customer: str | None) -> tuple[str, dict[str, Any]]:
    return f'{{"id":{id}}}', {**order(id, customer_id, total), "customer": customer}


async def test_a_looked_up_row_is_that_of_the_moment(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", ORDERS, partitions=1)
    customers = await feeder.table("customers", CUSTOMERS, partitions=1)
    config = config_of(feeder, [orders.topic, customers.topic], tmp_path, partitions=1)
    named = lookup(orders.topic, customers.topic, on={"customer_id": "id"}, take={"name": "customer"})

    async def write(made: Processing, units: int, *changes: Callable[[], None]) -> None:
        """And wait until they have gone through: `units` of all hops."""
        done = made.detail.get("done", 0)
        for change in changes:
            change()
        await feeder.flush()
        await made.until(lambda: made.detail.get("done", 0) >= done + units, f"{units} more to be done")

    async with processing(config, named, state="rocksdb") as made:
        await write(made, 2, lambda: customers.create({"id": 1, "name": "Ann"}, lsn=101))
        await write(
            made,
            6,
            lambda: orders.create(order(1, 1, 10), lsn=102),
            lambda: orders.create(order(2, 2, 20), lsn=103),  # its customer comes too late
        )
        await made.rows(dict([row(1, 1, 10, "Ann"), row(2, 2, 20, None)]))
    async with processing(config, named, state="rocksdb") as made:
        await write(
            made,
            4,
            lambda: customers.update({"id": 1, "name": "Anna"}, lsn=104),
            lambda: customers.create({"id": 2, "name": "Bo"}, lsn=105),
        )
        await write(
            made,
            6,
            lambda: orders.create(order(3, 1, 30), lsn=106),
            lambda: orders.update(order(2, 2, 21), lsn=107),  # comes again, and looks again
        )
        await made.rows(dict([row(1, 1, 10, "Ann"), row(2, 2, 21, "Bo"), row(3, 1, 30, "Anna")]))
        customers.delete({"id": 1, "name": "Anna"}, lsn=108)
        orders.delete(order(1, 1, 10), lsn=109)
        await feeder.flush()
        await made.rows(dict([row(2, 2, 21, "Bo"), row(3, 1, 30, "Anna")]))
