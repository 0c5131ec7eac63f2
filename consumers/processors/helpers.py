"""What most processors are, in a line each.

    big = filter_(lambda row: row["total"] > 100)
    by_customer = aggregate(by=["customer_id"], revenue=sum_("total"), orders=count())
    named = join("shop.public.orders", "shop.public.customers", on={"customer_id": "id"}, take=["name"])

A row is a dict of JSON values, as in the topics: numerics and times are texts. A function given here must
give the same for the same row, and do nothing else: it may be asked again after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from consumers.processors import arguments
from consumers.processors.context import Row
from consumers.processors.operators.aggregate import Aggregate
from consumers.processors.operators.derive import Body, Derive, expanded, exploded, renamed
from consumers.processors.operators.join import Join
from consumers.processors.operators.measures import Average, Count, Extreme, Measure, Sum, Top
from consumers.processors.operators.plain import Flatten, OutboxRouter
from consumers.processors.operators.windows import binned, seconds, windows_of
from consumers.processors.shapes import declared
from streamer.errors import ConfigError

By = Sequence[str] | Mapping[str, str]

_KEEP = 'lambda row: row["status"] == "paid"'
_BODY = 'lambda row: {**row, "large": True}'


def map_(body: Body, *, columns: Mapping[str, str] | None = None) -> Derive:
    """Each row becomes what `body` returns: a row, several, or None for none.

    `columns`: the types of derived columns ({"total": "numeric(12,2)"}) that the input does not have.
    """
    made = arguments.per_row(body, "map_(body)", _BODY, gives_rows=True)
    return Derive(made, declared=arguments.types(columns, "map_(.., columns=..)"))


def filter_(keep: Callable[[Row], object]) -> Derive:
    """The rows for which `keep` is true; one that stops being so is deleted."""
    arguments.per_row(keep, "filter_(keep)", _KEEP)
    return Derive(lambda row: row if keep(row) else None)


def rename(columns: Mapping[str, str], *, drop: Iterable[str] = ()) -> Derive:
    """Columns under other names (from -> to), without those in `drop`."""
    names = arguments.mapping(columns, "rename(columns)", '{"total": "amount"}')
    arguments.apart(names.values(), "rename(columns)")
    dropped = arguments.columns(drop, "rename(.., drop=..)")
    body, types = renamed(names, dropped)
    return Derive(body, types=types, reads=(*names, *dropped))


def route(table: Callable[[Row], str], body: Body | None = None) -> Derive:
    """Each row to the topic `<out>.<table(row)>`; a row that changes its table is deleted from the other."""
    arguments.per_row(table, "route(table)", 'lambda row: row["status"]')
    if body is not None:
        arguments.per_row(body, "route(.., body)", _BODY, gives_rows=True)
    return Derive(body or (lambda row: row), table=table)


def flatten(body: Body | None = None) -> Flatten:
    """Plain rows, {"id": 1, ..}, without an envelope, for other readers; a tombstone for a delete."""
    return Flatten(None if body is None else arguments.per_row(body, "flatten(body)", _BODY))


def outbox_router(*, route: str, key: str, payload: str) -> OutboxRouter:
    """Each inserted row of an outbox table as a message of the topic `<out>.<value of the column route>`.

    Its key and value are the columns `key` and `payload` as they are. Messages of one partition of the
    outbox table's topic keep their order; those of one `key` do when that topic has one partition.
    """
    named = {"route": route, "key": key, "payload": payload}
    return OutboxRouter(*(arguments.column(each, f"outbox_router({n}=..)") for n, each in named.items()))


def expand(
    columns: Sequence[str] | None = None, *, separator: str = "_", types: Mapping[str, str] | None = None
) -> Derive:
    """Objects in JSON columns become columns: address {"city": ..} becomes address_city.

    `types`: of derived columns; an object whose column is named here stays one.
    """
    only = None if columns is None else arguments.columns(columns, "expand(columns)")
    typed = arguments.types(types, "expand(.., types=..)")
    body = expanded(arguments.text(separator, "expand(.., separator=..)"), only, _kinds(typed))
    return Derive(body, declared=typed, reads=only or ())


def explode(
    column: str,
    *,
    position: str = "position",
    value: str = "value",
    prefix: str = "",
    types: Mapping[str, str] | None = None,
) -> Derive:
    """A row an element of the array in `column`; `key:` names the input's key and `position`.

    An object's members become columns, named with `prefix` before them; any other element the column `value`.
    """
    arguments.column(column, "explode(column)")
    arguments.column(position, "explode(.., position=..)")
    arguments.column(value, "explode(.., value=..)")
    arguments.text(prefix, "explode(.., prefix=..)")
    typed = arguments.types(types, "explode(.., types=..)")
    body = exploded(column, position, value, prefix, _kinds(typed))
    return Derive(body, declared={position: "integer", **typed})


def aggregate(by: By, *, where: Callable[[Row], bool] | None = None, **measures: Measure) -> Aggregate:
    """GROUP BY `by`, a derived row a group: its columns, then the measures.

    `by` as a mapping gives the group's columns other names (derived -> input).
    """
    return Aggregate(_by(by, "aggregate"), _measures(measures), _where(where, "aggregate"))


def window(
    time: str,
    size: str,
    *,
    every: str | None = None,
    by: By = (),
    start: str = "window_start",
    where: Callable[[Row], bool] | None = None,
    **measures: Measure,
) -> Aggregate:
    """GROUP BY windows of the timestamp column `time`, and `by`: counts a row in each.

    `size`: "15m", "1h", "1d"; `every`: how far apart windows begin, the size unless said (tumbling).
    """
    arguments.column(time, "window(time, ..)")
    arguments.column(start, "window(.., start=..)")
    size_s = seconds(size, "size")
    every_s = size_s if every is None else seconds(every, "every")
    return Aggregate(
        _by(by, "window"),
        _measures(measures or {"count": Count()}),
        _where(where, "window"),
        spread=windows_of(time, size_s, every_s, start),
        spread_columns={start: time},
        spread_type=binned,
    )


def join(
    left: str,
    right: str,
    *,
    on: Mapping[str, str],
    take: Mapping[str, str] | Sequence[str],
    keep: Sequence[str] | None = None,
    inner: bool = False,
) -> Join:
    """Each row of the topic `left` with the columns `take` of the row of `right` that `on` finds.

    `on`: left column -> right column. `take`: right column -> derived column, or their names. `keep`: the
    left columns that are wanted, all unless said. Without a match they are null; with `inner` there is no
    row. Where several right rows match, the processor's `key:` must tell them apart.
    """
    return _joined("join", left, right, on, take, keep, inner)


def lookup(
    stream: str,
    table: str,
    *,
    on: Mapping[str, str],
    take: Mapping[str, str] | Sequence[str],
    keep: Sequence[str] | None = None,
    inner: bool = False,
) -> Join:
    """As join, but a row is joined once, when it comes, with what `table` holds then."""
    return _joined("lookup", stream, table, on, take, keep, inner)


def count(column: str | None = None) -> Measure:
    """count(*), or of the rows in which `column` is not null."""
    return Count(None if column is None else arguments.column(column, "count(column)"))


def sum_(column: str, *, type: str | None = None) -> Measure:
    """Exact; null when no row has a value. `type`: the derived column's."""
    declared_type = None if type is None else arguments.column(type, "sum_(.., type=..)")
    return Sum(arguments.column(column, "sum_(column)"), declared_type)


def avg(column: str) -> Measure:
    """As a double precision number."""
    return Average(arguments.column(column, "avg(column)"))


def min_(column: str) -> Measure:
    """Nulls left out; of texts by code point."""
    return Extreme(arguments.column(column, "min_(column)"), greatest=False)


def max_(column: str) -> Measure:
    """Nulls left out; of texts by code point."""
    return Extreme(arguments.column(column, "max_(column)"), greatest=True)


def top(n: int, column: str, *, take: Sequence[str] = (), least: bool = False) -> Measure:
    """The `n` rows with the greatest (`least`: least) values of `column`, as a JSON array of `take`."""
    arguments.number(n, "top(n, ..)")
    arguments.column(column, "top(.., column)")
    return Top(n, column, arguments.columns(take, "top(.., take=..)"), least)


def _by(by: By, helper: str) -> dict[str, str]:
    place = f"{helper}(by=..)"
    if isinstance(by, Mapping):
        return arguments.mapping(by, place, '{"customer": "customer_id"}')
    return {column: column for column in arguments.columns(by, place)}


def _where(where: Callable[[Row], bool] | None, helper: str) -> Callable[[Row], bool] | None:
    if where is not None:
        arguments.per_row(where, f"{helper}(.., where=..)", _KEEP)
    return where


def _joined(
    helper: str,
    left: str,
    right: str,
    on: Mapping[str, str],
    take: Mapping[str, str] | Sequence[str],
    keep: Sequence[str] | None,
    inner: bool,
) -> Join:
    for topic, which in ((left, "its first topic"), (right, "its second topic")):
        if not isinstance(topic, str):
            fix = 'name it as `in:` of the processor does, such as "shop.public.orders"'
            raise ConfigError(f"{topic!r} is no topic", where=f"{helper}(..): {which}", fix=fix)
    found = arguments.mapping(on, f"{helper}(.., on=..)", '{"customer_id": "id"}')
    if not found:
        raise ConfigError(
            "`on` names no columns: every row would fit every other",
            where=f"{helper}(.., on={{}})",
            fix='name the columns that are equal, left: right, such as on={"customer_id": "id"}',
        )
    place = f"{helper}(.., take=..)"
    if isinstance(take, Mapping):
        taken = arguments.mapping(take, place, '{"name": "customer"}')
    else:
        taken = {column: column for column in arguments.columns(take, place)}
    kept = None if keep is None else arguments.columns(keep, f"{helper}(.., keep=..)")
    arguments.apart((*dict.fromkeys(kept or ()), *taken.values()), place)
    return Join(left, right, found, taken, kept, inner, follow=helper == "join")


def _kinds(types: Mapping[str, str] | None) -> dict[str, str]:
    return {name: declared(name, type_).kind for name, type_ in (types or {}).items()}


def _measures(measures: Mapping[str, Measure]) -> Mapping[str, Measure]:
    for name, measure in measures.items():
        if not hasattr(measure, "take"):
            raise ConfigError(
                f"{name}={measure!r} is no measure",
                fix="write count(), sum_(column), avg(column), min_(column), max_(column) or top(n, column)",
            )
    if not measures:
        raise ConfigError("nothing is measured", fix="add a measure, such as orders=count()")
    return measures
