"""Two tables side by side, kept live: join(left=..., right=..., on={"customer_id": "id"}, take={...}). Pure.

Hop 0 sends a row to its join value, hop 1 pairs the sides of a join value, hop 2 keeps the pairs of a derived
row (see contributors: a left row that goes to another join value never ends deleted). A right row that comes
late, changes or goes is told to every left row of its join value. Null joins with nothing.

    to hop 1    key: the join value; value: ["l" or "r", row's key, version, row | null]
    table "l"   join value, NUL, left key -> [version, row]
    table "r"   join value, NUL, right key -> row
    table "told" of a lookup: join value, NUL, left key -> the right side that it was joined with
    to hop 2    key: the derived key; value: [join value / right key, left version, row | null]

A topic that is joined with itself sends each row to both sides. A row whose part of the derived key is null
is refused at hop 0, where its own key parks it.

    note        {"l" and/or "r": the join value that the row was sent to as this side}

With follow=False (a stream that looks a table up) the right side is what was known when the left row came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orjson import dumps, loads

from consumers.processors.context import Change, Context, Forwarded, Given, Hop, Input, Row, Version
from consumers.processors.operators.contributors import Contributors, contribution
from consumers.processors.operators.equality import comparable, same
from consumers.processors.operators.inputs import Inputs
from consumers.processors.operators.keys import Keys
from consumers.processors.operators.rows import Turn, key_of
from streamer.errors import BadRecordError, ConfigError

LEFT = "l"
RIGHT = "r"
TOLD = "told"
SPLIT = b"\x00"


@dataclass(frozen=True, slots=True)
class Join:
    """The definition that `join` and `lookup` give. `take`: right column -> derived column."""

    left: str
    right: str
    on: Mapping[str, str]  # left column -> right column
    take: Mapping[str, str]
    keep: Sequence[str] | None  # left columns; None: all
    inner: bool
    follow: bool

    def columns(self, given: Given) -> Mapping[str, str]:
        inputs = Inputs(given)
        left, right = inputs.types_of(self.left), inputs.types_of(self.right)
        names = left if self.keep is None else self.keep
        types = {name: left[name] for name in names if name in left}
        types.update({name: right[column] for column, name in self.take.items() if column in right})
        return types

    def hops(self, given: Given) -> Sequence[Hop]:
        where = f"processors.{given.processor}"
        for topic in (self.left, self.right):
            if topic not in given.inputs:
                raise ConfigError(
                    f"the join reads {topic}, which is not in its inputs",
                    where=f"{where}.in",
                    fix=f"write in: [{', '.join(dict.fromkeys((self.left, self.right)))}]",
                )
        taken = set(self.take.values())
        if not self.inner and (of_right := [column for column in given.key if column in taken]):
            raise ConfigError(
                f"a row without a match has no {of_right[0]}, which is of its key",
                where=f"{where}.key",
                fix=f"write inner=True, or leave {of_right[0]} out of `key`",
            )
        if self.keep is not None and (
            gone := [c for c in given.key if c not in taken and c not in self.keep]
        ):
            raise ConfigError(
                f"the derived row has no {gone[0]}, which is of its key",
                where=f"{where}.key",
                fix=f"name {gone[0]} in `keep` or `take`, or leave it out of `key`",
            )
        return (_Sides(self, given), _Pairs(self, given), Contributors())


class _Sides:
    """Hop 0."""

    def __init__(self, join: Join, given: Given) -> None:
        self._join = join
        self._inputs = Inputs(given)
        self._keys = Keys(given, join.columns)
        self._where = f"processor {given.processor}"
        self._taken_names = taken = set(join.take.values())
        self._left_key = tuple(column for column in given.key if column not in taken)
        self._right_key = tuple(column for column, name in join.take.items() if name in given.key)
        # A row of a table that is looked up in itself finds itself, too: it is told to the right side first.
        self._sides = {topic: tuple(s for s, of in _order(join) if of == topic) for topic in given.inputs}

    def handle(self, record: Input, context: Context) -> None:
        change = self._inputs.change(record)
        if change is None:
            return
        turn, key = Turn(change, context), key_of(change)
        before: dict[str, str] = turn.own or {}
        after: dict[str, str] = {}
        for side in self._sides.get(change.topic, ()):
            was, value = before.get(side), None
            if turn.now is not None:
                value = after[side] = self._value(turn.now, side, change)
            if was is not None and was != value:
                context.forward(was.encode(), dumps([side, key, change.version, None]))
            if turn.now is not None and value is not None:
                row = self._left(turn.now) if side == LEFT else self._taken(turn.now)
                row = self._keyed(row, side, change)
                context.forward(value.encode(), dumps([side, key, change.version, row, change.op == "r"]))
        if turn.now is not None:
            turn.note(after)

    def _left(self, row: Row) -> Row:
        keep = self._join.keep
        if keep is None:
            if twice := self._taken_names & row.keys():
                raise BadRecordError(
                    f"{min(twice)} would be two columns: {self._join.left} has it, too",
                    where=self._where,
                    fix='give it another name, take={"name": "customer_name"}, or name what to `keep`',
                )
        elif missing := [column for column in keep if column not in row]:
            raise self._inputs.no_column(missing[0], row)
        return row

    def _taken(self, row: Row) -> Row:
        try:
            return {column: row[column] for column in self._join.take}
        except KeyError as error:
            raise self._inputs.no_column(str(error.args[0]), row) from None

    def _keyed(self, row: Row, side: str, change: Change) -> Row:
        """With the derived key's columns in their one form."""
        key = self._left_key if side == LEFT else self._right_key
        if not key:
            return row
        names = {column: column if side == LEFT else self._join.take[column] for column in key}
        formed = self._keys.formed({name: row[column] for column, name in names.items()}, change)
        return {**row, **{column: formed[name] for column, name in names.items()}}

    def _value(self, row: Row, side: str, change: Change) -> str:
        """Where the row's matches are. Raises BadRecordError."""
        on, key = (
            (self._join.on.keys(), self._left_key)
            if side == LEFT
            else (self._join.on.values(), self._right_key)
        )
        kinds = self._inputs.kinds(change)
        values = []
        try:
            for column in key:
                if row[column] is None:
                    raise BadRecordError(
                        f"{column} is null, and of the derived row's key",
                        where=self._where,
                        fix="give it a value, or leave it out of the processor's `key:`",
                    )
            for column in on:
                values.append(_compared(row, column, kinds))
        except KeyError as error:
            raise self._inputs.no_column(str(error.args[0]), row) from None
        return dumps(values).decode()


def _order(join: Join) -> tuple[tuple[str, str], tuple[str, str]]:
    return (RIGHT, join.right), (LEFT, join.left)


def _compared(row: Row, column: str, kinds: Mapping[str, str]) -> object:
    value = row[column]
    try:
        return comparable(value, kinds.get(column, ""))
    except BadRecordError as error:
        raise BadRecordError(f"column {column}: {error.what}", fix=error.fix) from None


class _Pairs:
    """Hop 1."""

    def __init__(self, join: Join, given: Given) -> None:
        self._join = join
        self._key = given.key
        self._nothing = dict.fromkeys(join.take.values())

    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Forwarded)
        side, key, version, row, *again = loads(record.value)
        place = record.key + SPLIT + key.encode()
        if side == LEFT:
            self._left(record.key, place, key, version, row, context, again=again == [True])
        else:
            self._right(record.key, place, key, row, context)

    def _left(
        self,
        value: bytes,
        place: bytes,
        key: str,
        version: Version,
        row: Row | None,
        context: Context,
        *,
        again: bool,
    ) -> None:
        """`again`: the row was read, not changed, and keeps its version if it is the same."""
        lefts, told = context.table(LEFT), context.table(TOLD)
        noted = lefts.get(place)
        was, old = (version, None) if noted is None else loads(noted)
        again = again and same(old, row)
        version = was if again else version
        now = list(self._matches(value, context))
        before = now if self._join.follow else [tuple(pair) for pair in loads(told.get(place) or b"[]")]
        if row is None:
            lefts.delete(place)
            told.delete(place)
        else:
            lefts.put(place, dumps([version, row]))
            if not self._join.follow:
                told.put(place, dumps(now))
        rights_then, rights_now = dict(before), dict(now)
        for right_key in {**rights_then, **rights_now}:
            then = None
            if old is not None and right_key in rights_then:
                then = self._paired(key, old, rights_then[right_key])
            after = None
            if row is not None and right_key in rights_now:
                after = self._paired(key, row, rights_now[right_key])
            who = f"{value.decode()}/{key}/{right_key}"
            self._tell(who, version, then, after, context, changed=bool(self._key) and not again)

    def _right(self, value: bytes, place: bytes, right_key: str, row: Row | None, context: Context) -> None:
        rights = context.table(RIGHT)
        noted = rights.get(place)
        old: Row | None = None if noted is None else loads(noted)
        if row is None:
            rights.delete(place)
        else:
            rights.put(place, dumps(row))
        if not self._join.follow or _has_null(value) or same(row, old):
            return
        alone = not self._join.inner and not any(
            other != place for other, _ in rights.scan(value + SPLIT)
        )  # no other right row: the pair with nothing begins or ends
        for left_place, left_noted in context.table(LEFT).scan(value + SPLIT):
            version, left = loads(left_noted)
            key = left_place[len(value) + 1 :].decode()
            pair = f"{value.decode()}/{key}/"
            if alone and (old is None) != (row is None):
                nothing = self._paired(key, left, None)
                then, after = (nothing, None) if old is None else (None, nothing)
                self._tell(pair, version, then, after, context)
            then = None if old is None else self._paired(key, left, old)
            after = None if row is None else self._paired(key, left, row)
            self._tell(pair + right_key, version, then, after, context)

    def _matches(self, value: bytes, context: Context) -> Iterator[tuple[str, Row | None]]:
        """(key, row) of the join value's right side; of a left join without any: ("", None)."""
        found = False
        if not _has_null(value):
            for place, row in context.table(RIGHT).scan(value + SPLIT):
                found = True
                yield place[len(value) + 1 :].decode(), loads(row)
        if not found and not self._join.inner:
            yield "", None

    def _paired(self, key: str, left: Row, right: Row | None) -> tuple[bytes, Row]:
        """The derived key and row of a pair."""
        keep = self._join.keep
        row = dict(left) if keep is None else {column: left[column] for column in keep}
        if right is None:
            row.update(self._nothing)
        else:
            row.update({name: right[column] for column, name in self._join.take.items()})
        if not self._key:
            return key.encode(), row
        return dumps({column: row[column] for column in self._key}), row

    @staticmethod
    def _tell(
        who: str,
        version: Version,
        then: tuple[bytes, Row] | None,
        now: tuple[bytes, Row] | None,
        context: Context,
        *,
        changed: bool = False,
    ) -> None:
        """`changed`: also what is the same, as others may say the derived row, and this one changed last."""
        if then is not None and (now is None or then[0] != now[0]):
            context.forward(then[0], contribution(who, version, None))
        if now is not None and (changed or then is None or now[0] != then[0] or not same(now[1], then[1])):
            context.forward(now[0], contribution(who, version, now[1]))


def _has_null(value: bytes) -> bool:
    return b"null" in value and None in loads(value)
