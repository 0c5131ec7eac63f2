"""Every helper beside the query that it stands for, over the tables of tests.harness.shop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from consumers.processors import Definition, Row, agent
from consumers.processors.helpers import (
    aggregate,
    avg,
    count,
    expand,
    explode,
    filter_,
    flatten,
    join,
    lookup,
    map_,
    max_,
    min_,
    outbox_router,
    rename,
    route,
    sum_,
    top,
    window,
)
from tests.harness.shop import MESSAGES

STATUSES = ("open", "paid", "sent", "cancelled")


@dataclass(frozen=True, slots=True)
class Helper:
    """`make` is given the inputs' topics. `queries`: of a router by table, else under "" alone.

    `plain`: its records have no envelope, and no flow copies them.
    """

    make: Callable[..., Definition]
    queries: dict[str, str]
    inputs: tuple[str, ...] = ("orders",)
    key: tuple[str, ...] = field(default=())
    plain: bool = False


def _dear(row: Row) -> bool:
    return row["total"] is not None and Decimal(row["total"]) > 50


def _by_code(row: Row) -> Row:
    return {name: row[name] for name in ("code", "id", "customer_id", "total", "stamp")}


def _of_status(row: Row) -> str:
    return str(row["status"])


HELPERS: dict[str, Helper] = {
    "by_customer": Helper(
        lambda orders: aggregate(
            by=["customer_id"],
            where=lambda order: order["status"] != "cancelled",
            orders=count(),
            priced=count("total"),
            revenue=sum_("total"),
            units=sum_("qty"),
            stamps=sum_("stamp"),
            weight=sum_("weight"),
            mean=avg("weight"),
            cheapest=min_("total"),
            last_code=max_("code"),
            first_order=min_("placed"),
            last_order=max_("placed"),
            largest=top(3, "total", take=["id", "total"]),
        ),
        {
            "": """
            SELECT customer_id, count(*) AS orders, count(total) AS priced, sum(total) AS revenue,
                   sum(qty) AS units, sum(stamp) AS stamps, sum(weight) AS weight, avg(weight) AS mean,
                   min(total) AS cheapest, max(code COLLATE "C") AS last_code,
                   min(placed) AS first_order, max(placed) AS last_order,
                   coalesce((SELECT jsonb_agg(jsonb_build_object('id', id, 'total', total::text)
                               ORDER BY total DESC, id)
                      FROM (SELECT id, total FROM orders i
                             WHERE i.customer_id = o.customer_id AND status <> 'cancelled'
                                   AND total IS NOT NULL
                             ORDER BY total DESC, id LIMIT 3) t),
                      '[]') AS largest
              FROM orders o WHERE status <> 'cancelled' AND customer_id IS NOT NULL GROUP BY customer_id
            """
        },
    ),
    "named": Helper(
        lambda orders, customers: join(
            orders, customers, on={"customer_id": "id"}, take={"name": "customer", "region": "region"}
        ),
        {
            "": """
            SELECT o.id, o.customer_id, o.status, o.code, o.total, o.note, c.name AS customer, c.region
              FROM orders o LEFT JOIN customers c ON c.id = o.customer_id
            """
        },
        inputs=("orders", "customers"),
    ),
    "known": Helper(
        lambda orders, customers: join(
            orders, customers, on={"customer_id": "id"}, take=["name"], keep=["id", "total"], inner=True
        ),
        {"": "SELECT o.id, o.total, c.name FROM orders o JOIN customers c ON c.id = o.customer_id"},
        inputs=("orders", "customers"),
    ),
    "pairs": Helper(
        lambda orders, customers: join(
            orders, customers, on={"status": "region"}, take={"id": "buyer", "name": "name"}, inner=True
        ),
        {
            "": "SELECT o.id, c.id AS buyer, o.code, c.name FROM orders o JOIN customers c"
            " ON c.region = o.status"
        },
        inputs=("orders", "customers"),
        key=("id", "buyer"),
    ),
    "hours": Helper(
        lambda orders: window("placed", "1h", by=["status"], n=count(), units=sum_("qty")),
        {
            "": "SELECT date_bin('1 hour', placed, timestamptz 'epoch') AS window_start, status,"
            " count(*) AS n, sum(qty) AS units FROM orders WHERE placed IS NOT NULL GROUP BY 1, 2"
        },
    ),
    "dear": Helper(
        lambda orders: filter_(_dear),
        {
            "": "SELECT id, customer_id, status, code, total, qty, weight, placed, note FROM orders"
            " WHERE total > 50"
        },
    ),
    "codes": Helper(
        lambda orders: map_(_by_code),
        {
            "": "SELECT DISTINCT ON (code) code, id, customer_id, total, stamp FROM orders"
            " ORDER BY code, stamp DESC"
        },
        key=("code",),
    ),
    "routed": Helper(
        lambda orders: route(_of_status),
        {
            status: f"SELECT id, status, total, note FROM orders WHERE status = '{status}'"
            for status in STATUSES
        },
    ),
    "renamed": Helper(
        lambda orders: rename({"total": "amount", "placed": "at"}, drop=["weight", "note"]),
        {"": "SELECT id, customer_id, status, total AS amount, placed AS at FROM orders"},
    ),
}
HELPERS["spread"] = Helper(
    lambda orders: expand(["address"], types={"address_city": "text", "address_at_lat": "integer"}),
    {
        "": "SELECT id, status, address->>'city' AS address_city,"
        " (address->'at'->>'lat')::int AS address_at_lat FROM orders"
    },
)
HELPERS["lines"] = Helper(
    lambda orders: explode("lines", types={"sku": "text", "n": "integer"}),
    {
        "": "SELECT id, (number - 1)::int AS position, line->>'sku' AS sku, (line->>'n')::int AS n"
        " FROM orders, jsonb_array_elements(lines) WITH ORDINALITY lines (line, number)"
    },
    key=("id", "position"),
)
OF_THE_SHOP = tuple(HELPERS)

HELPERS["looked"] = Helper(
    lambda orders, labels: lookup(
        orders, labels, on={"status": "word"}, take=["label"], keep=["id", "status", "total", "note"]
    ),
    {
        "": "SELECT o.id, o.status, o.total, o.note, l.label FROM orders o"
        " LEFT JOIN labels l ON l.word = o.status"
    },
    inputs=("orders", "labels"),
)
HELPERS["owned"] = Helper(
    lambda orders: agent(lambda change: _by_code(change.after)),
    HELPERS["codes"].queries,
    key=("code",),
)
HELPERS["sliding"] = Helper(
    lambda orders: window("placed", "1h", every="20m", by=["status"], n=count(), units=sum_("qty")),
    {
        "": "SELECT start AS window_start, status, count(*) AS n, sum(qty) AS units FROM orders,"
        " generate_series(date_bin('20 minutes', placed, timestamptz 'epoch') - interval '40 minutes',"
        " date_bin('20 minutes', placed, timestamptz 'epoch'), interval '20 minutes') start GROUP BY 1, 2"
    },
)
HELPERS["chained"] = Helper(
    lambda orders: join(orders, orders, on={"customer_id": "id"}, take={"code": "of"}, keep=["id"]),
    {"": "SELECT l.id, r.code AS of FROM orders l LEFT JOIN orders r ON r.id = l.customer_id"},
)
HELPERS["flat"] = Helper(
    lambda orders: flatten(_by_code),
    {"": "SELECT code, id, customer_id, total::text, stamp FROM orders"},
    plain=True,
)
HELPERS["messages"] = Helper(
    lambda outbox: outbox_router(route="topic", key="about", payload="body"),
    {topic: f"SELECT about AS key, body AS value FROM sent WHERE topic = '{topic}'" for topic in MESSAGES},
    inputs=("outbox",),
    plain=True,
)
OTHERS = tuple(name for name in HELPERS if name not in OF_THE_SHOP)

HELPERS["typed"] = Helper(
    lambda measured: aggregate(
        by={"account": "owner"},
        n=count(),
        whole=sum_("i"),
        wide=sum_("b"),
        exact=sum_("n"),
        rough=sum_("f"),
        first=min_("at"),
        last_day=max_("day"),
        is_any=max_("flag"),
        best=top(1, "n", take=["id"]),
    ),
    {
        "": """
        SELECT owner AS account, count(*) AS n, sum(i) AS whole, sum(b) AS wide, sum(n) AS exact,
               sum(f) AS rough, min(at) AS first, max(day) AS last_day, bool_or(flag) AS is_any,
               coalesce(jsonb_agg(jsonb_build_object('id', id) ORDER BY n DESC)
                          FILTER (WHERE n = (SELECT max(n) FROM measured i WHERE i.owner = m.owner)),
                        '[]') AS best
          FROM measured m GROUP BY owner
        """
    },
    inputs=("measured",),
)


def made(source: str) -> dict[str, Any]:
    """Definitions by name, for a module that a config names."""
    return {
        name: helper.make(*(f"{source}.public.{table}" for table in helper.inputs))
        for name, helper in HELPERS.items()
    }
