"""The fast path: rows hashed by hash_record_extended where both sides are Postgres, and when that is allowed.

Pure: it judges facts of both servers and writes SQL. The hash must see every difference that the canonical
text shows, which the server's own hash functions do not: they are made for equality, where 1.0 is 1.00, -0
is 0, one NaN is another, a month is 30 days, a nondeterministic collation holds letters for equal, and a
bigint is folded to 32 bits. So a column of such a type goes in as its binary form (`numeric_send`), a text
under COLLATE "C", and what else there is as its text.

hash_record_extended gives (((0 * 31) + h(c1)) * 31 + h(c2)) ..., with 0 for a null: linear in the columns.
A sum of such hashes over rows does not change when two rows swap their values of a column, or their keys.
So the row's hash is not linear in them: the seed of all columns' hashes is the key where that is one
integer, which costs nothing, and otherwise the row's hash is hashed once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumers.reconcile.dialects.postgres import RowHash, SqlColumn, printed

OLDEST_MAJOR = 15  # the first that tells the version of a database's own collation
SEED = 7_640_891_576_956_012_809  # any but 0, under which a hash has 32 bits
_NULL_KEY = -SEED  # stands for a null in the key of a given table; a key of that value would look like it

# Their own hash is exact: of all bits, into 64 bits.
_OWN = frozenset({"smallint", "integer", "oid", "boolean", "date", "uuid", "bytea"})
_TEXTS = frozenset({"text", "character varying"})  # one type, to a hash
_SENT = {
    "bigint": "int8send",
    "numeric": "numeric_send",
    "money": "cash_send",
    "character": "bpcharsend",
    "time without time zone": "time_send",
    "time with time zone": "timetz_send",
    "timestamp without time zone": "timestamp_send",
    "timestamp with time zone": "timestamptz_send",
    "interval": "interval_send",
    "jsonb": "jsonb_send",
    "inet": "inet_send",
    "cidr": "cidr_send",
    "bit": "bit_send",
    "bit varying": "varbit_send",
}
_FLOATS = {"real": "float4send", "double precision": "float8send"}
_INTEGERS = frozenset({"smallint", "integer", "bigint"})

# The hash of one value of each form above: it is the same on two servers whose hash functions, binary forms
# and byte order are. Settings have no part in it.
_PROBE = (
    "hash_record_extended(ROW(7::smallint, 7::int, 7::oid, true, date '2016-11-04',"
    " 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, convert_to('bytes of more than a word', 'UTF8'),"
    " 'text'::text COLLATE \"C\", int8send(-7), numeric_send(-123.4500), cash_send(5::money),"
    " bpcharsend('ab'), time_send('13:51:30.5'), timetz_send('13:51:30.5+02'),"
    " timestamp_send('2016-11-04 13:51:30.5'),"
    " timestamptz_send('2016-11-04 13:51:30.5+02'), interval_send('1 mon 2 days 3 s'),"
    " jsonb_send('{\"a\": 1.50}'), inet_send('::1'), cidr_send('10.0.0.0/8'), bit_send(B'0101'),"
    f" varbit_send(B'01'), float8send('-0'), float4send('-0')), {SEED})"
)
SERVER_FACTS = (
    f"SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'), {_PROBE}"
)


_OWN_DATABASE = "FROM pg_database WHERE datname = current_database()"
# (column, collation, its version in the library now, deterministic) of each column that has one; $1: the
# table's name. A database's default goes by the name of its locale.
COLLATION_FACTS = f"""SELECT a.attname::text,
CASE WHEN c.collname = 'default' THEN (SELECT datcollate::text {_OWN_DATABASE}) ELSE c.collname::text END,
CASE WHEN c.collname = 'default' THEN (SELECT pg_database_collation_actual_version(oid) {_OWN_DATABASE})
ELSE pg_collation_actual_version(c.oid) END, c.collisdeterministic
FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped"""


@dataclass(frozen=True, slots=True)
class Collation:
    name: str
    version: str | None  # None: the library tells none, as of "C"
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Server:
    """What SERVER_FACTS and COLLATION_FACTS say. `collations`: of the columns that have one, by name."""

    major: int
    encoding: str
    probe: int
    collations: Mapping[str, Collation]


@dataclass(frozen=True, slots=True)
class Pair:
    """A column of the source and the column of the target that it is compared with."""

    name: str
    source: SqlColumn
    target: SqlColumn
    target_name: str


def why_not(source: Server, target: Server, pairs: Sequence[Pair]) -> str | None:
    """Why these two are compared by canonical text; None: the fast path sees the same differences."""
    if source.major != target.major:
        return f"the servers are PostgreSQL {source.major} and {target.major}"
    if source.major < OLDEST_MAJOR:
        return f"PostgreSQL {source.major} does not tell the versions of collations (from {OLDEST_MAJOR} on)"
    if source.encoding != target.encoding:
        return f"the databases are in {source.encoding} and {target.encoding}"
    if source.probe != target.probe:
        return "the servers hash the same row differently (another byte order, or a changed build)"
    for pair in pairs:
        if reason := _why_not(pair) or _why_not_collation(pair, source, target):
            return f"column {pair.name!r}: {reason}"
    return None


def _why_not(pair: Pair) -> str | None:
    source, target = pair.source, pair.target
    if source.form.cast or target.form.cast:
        return f"it is {source.held.type} in the source and {target.held.type} in the target"
    if source.held.base in _TEXTS and target.held.base in _TEXTS:
        return None
    if source.held.kind != target.held.kind or source.held.base != target.held.base:
        return f"it is {source.held.type} in the source and {target.held.type} in the target"
    return None


def _why_not_collation(pair: Pair, source: Server, target: Server) -> str | None:
    one, other = source.collations.get(pair.name), target.collations.get(pair.target_name)
    if one is None and other is None:
        return None
    if one is None or other is None:
        return "it has a collation on one side only"
    for collation in (one, other):
        if not collation.deterministic:
            return f"its collation {collation.name} is nondeterministic"
    if one.version != other.version:
        return (
            f"its collations are {one.name} {one.version or 'without a version'} in the source and"
            f" {other.name} {other.version or 'without a version'} in the target"
        )
    return None


def row_hash(columns: Sequence[SqlColumn], key: Sequence[SqlColumn]) -> RowHash:
    """One lane of 64 bits. `key`: those of `columns` that are the key; none: rows are a multiset."""
    if len(key) == 1 and key[0].held.type in _INTEGERS:
        number = f"{key[0].sql}::bigint"
        values = [number if column.sql == key[0].sql else _hashable(column) for column in columns]
        return RowHash(f"hash_record_extended(ROW({', '.join(values)}), coalesce({number}, {_NULL_KEY}))")
    values = [_hashable(column) for column in columns]
    row = f"hash_record_extended(ROW({', '.join(values)}), {SEED})"
    return RowHash(f'hashtextextended({row}::text COLLATE "C", {SEED})')


def _hashable(column: SqlColumn) -> str:
    """An expression whose own hash is exact. A cast to the type that it has takes a domain off."""
    value, base = column.sql, column.held.base
    if base in _OWN:
        return f"{value}::{base}"
    if base in _SENT:
        return f"{_SENT[base]}({value})"
    if base in _FLOATS:
        nan, send = f"'NaN'::{base}", _FLOATS[base]
        if column.form.sent:
            return f"{send}(CASE WHEN {value} = {nan} THEN {nan} ELSE {value} END)"
        return f"{send}({value})"
    if column.held.kind == "vector":
        return f"array_send({value}::real[])"
    if base in _TEXTS:
        return f'{value}::text COLLATE "C"'
    return f'({printed(value)}) COLLATE "C"'
