"""A processor that is begun again: what its targets have of it afterwards."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from consumers.processors import Change, Derived, agent
from consumers.processors.operations import reset_processor
from streamer.config import parse
from tests.harness.capture import until
from tests.harness.feeder import Feeder, applying
from tests.harness.processing import NAME, config_text, processing

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]


async def test_rows_that_are_derived_no_more_leave_every_table_of_a_target(
    feeder: Feeder, tmp_path: Path
) -> None:
    """The floors are events like others: apply finds their schema records, and goes on behind them."""
    hidden: set[int] = set()

    @agent
    async def both(change: Change) -> list[Derived]:
        if change.key["id"] in hidden:
            return []
        return [change.to(after=change.after), change.to(after=change.after, table="rare table")]

    orders = await feeder.table("orders", COLUMNS)
    for number in range(4):
        orders.create({"id": number, "n": 0}, lsn=100 + number)
    await feeder.flush()
    out, file = f"{feeder.name}_out", tmp_path / "copy.db"
    text = config_text(feeder, [orders.topic], agent="tests.processors.agents:doubled")
    text += f"targets: {{copy: {{kind: sql, url: 'sqlite:///{file}'}}}}\n"
    text += f"flows: {{one: {{from: {out}, to: copy}}, others: {{from: '{out}.*', to: copy}}}}\n"
    config = parse(text, tmp_path / "tailrace.yaml", environ={})

    async def equal(*rows: tuple[int, int]) -> None:
        async def are() -> bool:
            try:
                with closing(sqlite3.connect(file)) as connection:
                    return all(
                        connection.execute(f"SELECT id, n FROM {table} ORDER BY id").fetchall() == list(rows)
                        for table in (out, "rare_x0020_table")
                    )
            except sqlite3.OperationalError:
                return False  # not made yet

        await until(are)

    async with applying(config):
        async with processing(config, both) as made:
            await equal((0, 0), (1, 0), (2, 0), (3, 0))
            await made.stop()
        hidden |= {1, 2}
        await reset_processor(config, NAME)
        async with processing(config, both):
            await equal((0, 0), (3, 0))
            orders.update({"id": 3, "n": 1}, lsn=200)
            await feeder.flush()
            await equal((0, 0), (3, 1))
