"""PostgreSQL's side of docs/digest.md: SQL that makes a row's canonical text, and lanes of its md5.

Pure: it writes expressions, for a session with the settings of streamer.postgres.connection. A row's text is
what the server prints for ROW(...): one call for the whole row, with each column's output function. So a
column's expression need not be a text; what counts is what is printed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumers.reconcile.forms import Form, Held
from streamer.changes.kinds import ARRAY

VALIDITY_MAJOR = 16  # the first that has pg_input_is_valid; before, a text that is no value fails the query
INVALID = "invalid: "  # before a text that is no value of the type it ought to be of
_NAN = "'NaN'::double precision"
_OF_NUMERICS = frozenset({"numeric", "numeric[]", "jsonb", "numrange", "nummultirange"})
_PIECES = (
    r"""E'("(?:[^"\\\\]|\\\\.)*"|-?[0-9][0-9.]*|[^"0-9-]+|.)'"""  # quoted texts, numbers, what is between
)
_NO_FLAGS = "E'\\\\x00000000'"  # an array's flag for nulls tells how it was built, not what is in it


@dataclass(frozen=True, slots=True)
class SqlColumn:
    """`sql`: an expression for the value, as a quoted name; `held`: the type of it; `form`: of forms.py."""

    sql: str
    held: Held
    form: Form


@dataclass(frozen=True, slots=True)
class RowHash:
    """SQL of a row's hash: bigint expressions over `h`, which is `row`, made once a row.

    Without `lanes` the hash has one lane, which is `row`.
    """

    row: str
    lanes: tuple[str, str] | None = None

    def digests(self, rows: str, *, by: str | None = None) -> str:
        """A query of (count, sum of a, sum of b) over `rows`, which is what follows FROM; with `by`, an
        expression, of (its value, count, ...) for each value.

        The sums are exact numerics of signed lanes, for RangeDigest.of_sums. The subquery with an offset is
        not flattened, which would make `row` once for each lane; as a constant it leaves the scan parallel.
        Of what comes out of it the planner expects few groups, and not as many as the key has values.
        """
        if self.lanes is None and by is None:
            return f"SELECT count(*), sum({self.row}), NULL FROM {rows}"
        a, b = self.lanes or ("h", "")
        first, inner, group = ("g, ", f", {by} AS g", " GROUP BY 1") if by else ("", "", "")
        once = f"SELECT {self.row} AS h{inner} FROM {rows} OFFSET '0'"
        return f"SELECT {first}count(*), sum({a}), {f'sum({b})' if b else 'NULL'} FROM ({once}) r{group}"

    def hashes(self, key: Sequence[str], rows: str) -> str:
        """A query of (key columns, a, b) of each row, for digest.RowHash.of; `key`: expressions."""
        listed = "".join(f"{expression} AS k{at}, " for at, expression in enumerate(key))
        if self.lanes is None:
            return f"SELECT {listed}{self.row}, 0 FROM {rows}"
        names = "".join(f"k{at}, " for at in range(len(key)))
        a, b = self.lanes
        return f"SELECT {names}{a}, {b} FROM (SELECT {listed}{self.row} AS h FROM {rows} OFFSET '0') r"


def row_hash(columns: Sequence[SqlColumn], *, major: int, plain: bool = True) -> RowHash:
    """Two lanes of the md5 of the canonical text. `plain`: see PLAIN."""
    text = row_text(columns, major=major, plain=plain)
    lanes = ("substring(h, 1, 64)::bigint", "substring(h, 65, 64)::bigint")
    return RowHash(f"('x' || md5({text}))::bit(128)", lanes)


# Whether the server keeps its texts in UTF-8 and quotes ASCII white space only: some C libraries take a byte
# of a longer character for a space, which the server then quotes. Where not, `plain` is false.
_SPACES = "convert_from(E'\\\\xc2a0c285e28580d0a0d085', current_setting('server_encoding'))"
PLAIN = (
    "SELECT CASE WHEN current_setting('server_encoding') = 'UTF8'"
    f" THEN ROW({_SPACES})::text = '(' || {_SPACES} || ')' ELSE false END"
)


def row_text(columns: Sequence[SqlColumn], *, major: int, plain: bool = True) -> str:
    """An expression of the row's text; bytes of it in UTF-8 where it is not `plain`."""
    expressions = [column_sql(column, major=major) for column in columns]
    if plain:
        return f"ROW({', '.join(expressions)})::text"
    fields = ", ',', ".join(_field(printed(expression)) for expression in expressions)
    return f"convert_to(concat('(', {fields}, ')'), 'UTF8')" if fields else "'()'::bytea"


def _field(text: str) -> str:
    quoted = rf"""'"' || replace(replace({text}, E'\\', E'\\\\'), '"', '""') || '"'"""
    special = rf"""{text} = '' OR {text} ~ E'[ \t\n\r\f\x0b(),"\\\\]'"""
    return f"CASE WHEN {special} THEN {quoted} ELSE {text} END"


def printed(expression: str) -> str:
    """What the server prints for an expression, as a text; NULL for a null.

    concat calls the type's output function; a cast to text may be another (of char(n), boolean, inet).
    """
    return f"CASE num_nulls({expression}) WHEN 0 THEN concat({expression}) END"


def column_sql(column: SqlColumn, *, major: int) -> str:
    """An expression that is printed as the value's canonical text, NULL for a null."""
    form, value = column.form, column.sql
    if form.cast is None:
        return _canonical(value, column.held.type, form)
    first = form.via or form.cast
    steps = f"::{first}" if first == form.cast else f"::{first}::{form.cast}"
    if form.direct:
        return _canonical(f"{value}{steps}", form.cast, form)
    text = _text_of(column)
    made = printed(_canonical(f"({text}){steps}", form.cast, form))
    if major < VALIDITY_MAJOR:
        return made
    literal = first.replace("'", "''")
    return f"CASE WHEN pg_input_is_valid({text}, '{literal}') THEN {made} ELSE '{INVALID}' || {text} END"


def _text_of(column: SqlColumn) -> str:
    """The value as the text that apply writes."""
    value, kind = column.sql, column.held.kind
    if kind == "money":
        return f"{value}::numeric::text"
    if kind == ARRAY + "money":
        return f"{value}::numeric[]::text"
    if column.form.kind == "vector":  # of another store's spelling: a JSON array
        return f"translate({value}, '[]', '{{}}')"
    return printed(value)


def _canonical(value: str, type_: str, form: Form) -> str:
    kind = form.kind
    if kind == "float":
        return _float(value, type_, form)
    if form.is_equal and type_.partition("(")[0] in _OF_NUMERICS:
        return _trimmed(value, type_)
    if kind == "money":
        return f"{value}::numeric"
    if kind == ARRAY + "money":
        return f"{value}::numeric[]"
    if kind == "vector":
        return f"overlay(array_send({value}::real[]) PLACING {_NO_FLAGS} FROM 5)"
    if kind == ARRAY + "float":
        return f"overlay(array_send({value}::text::double precision[]) PLACING {_NO_FLAGS} FROM 5)"
    return value


def _trimmed(value: str, type_: str) -> str:
    """Numerics without the zeros behind their points; those in a value of parts by way of its text."""
    if type_.partition("(")[0] == "numeric" and not type_.endswith("[]"):
        return f"trim_scale({value})"
    piece = "CASE WHEN m[1] ~ '^-?[0-9]' THEN trim_scale(m[1]::numeric)::text ELSE m[1] END"
    pieces = f"regexp_matches(({value})::text, {_PIECES}, 'g') WITH ORDINALITY r(m, n)"
    return f"CASE WHEN {value} IS NOT NULL THEN (SELECT string_agg({piece}, '' ORDER BY n) FROM {pieces}) END"


def _float(value: str, type_: str, form: Form) -> str:
    """The bits of a double precision, so that -0 and a NaN's payload are seen; of a real, of the double that
    its shortest text is, which is what an envelope's reader makes of it."""
    double = f"{value}::text::double precision" if type_ == "real" else value
    if not form.signed_zero:
        double = f"({double} + 0)"
    if type_ != "real":
        return (
            f"float8send(CASE WHEN {value} = {_NAN} THEN {_NAN} ELSE {double} END)"
            if form.sent
            else f"float8send({double})"
        )
    if form.sent:
        return f"float8send({double})"
    odd = f"{value} = 'NaN'::real AND float4send({value}) <> E'\\\\x7fc00000'"
    return f"CASE WHEN {odd} THEN float4send({value}) ELSE float8send({double}) END"
