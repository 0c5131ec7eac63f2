"""Revenue per customer, kept live from the shop's orders.

A row of the topic `revenue` for each customer who has orders: how many, what they come to, when the last
was made, and the three largest. An order that is changed, cancelled, deleted or moved to another customer is
taken out where it was and added where it is.
"""

from __future__ import annotations

from consumers.processors import aggregate, count, max_, sum_, top

revenue = aggregate(
    by=["customer_id"],
    where=lambda order: order["status"] != "cancelled",
    orders=count(),
    revenue=sum_("total"),
    last_order=max_("placed_at"),
    largest=top(3, "total", take=["id", "total"]),
)
