"""What bench_processors runs: the same row with one more column, by a helper and by an agent; and groups."""

from __future__ import annotations

from consumers.processors import Change, Row, agent, aggregate, count, map_, max_, sum_


def _worth(row: Row) -> Row:
    return {**row, "twice": 2 * row["quantity"]}


mapped = map_(_worth, columns={"twice": "integer"})


@agent(columns={"twice": "integer"})
async def agent_mapped(change: Change) -> Row:
    assert change.after is not None
    return _worth(change.after)


by_customer = aggregate(by=["customer"], orders=count(), revenue=sum_("price"), last=max_("at"))
