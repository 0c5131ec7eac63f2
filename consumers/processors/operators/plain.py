"""Records without an envelope, for readers that are no flow of Tailrace: flattened rows, an outbox. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orjson import dumps

from consumers.processors.context import Context, Given, Hop, Input, Row
from consumers.processors.fitting import kept
from consumers.processors.operators.derive import Body
from consumers.processors.operators.inputs import Inputs
from consumers.processors.operators.rows import Turn, key_of
from streamer.errors import BadRecordError, ConfigError

NO_TYPES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Flatten:
    """The definition that `flatten` gives: key -> the row as plain JSON, a tombstone when it is gone."""

    body: Body | None

    def columns(self, given: Given) -> Mapping[str, str]:
        return NO_TYPES

    def hops(self, given: Given) -> Sequence[Hop]:
        _without_key("flatten", given)
        if len(given.inputs) > 1:
            raise ConfigError(
                f"flatten of {len(given.inputs)} topics: rows of two may have one key, and the tombstone of"
                " one would delete the other",
                where=f"processors.{given.processor}.in",
                fix="write a processor for each, with an `out` of its own",
            )
        return (_Flattened(self.body, Inputs(given)),)


class _Flattened:
    def __init__(self, body: Body | None, inputs: Inputs) -> None:
        self._body = body
        self._inputs = inputs

    def handle(self, record: Input, context: Context) -> None:
        change = self._inputs.change(record)
        if change is None:
            return
        turn = Turn(change, context)
        key = key_of(change).encode()
        if turn.now is None:
            context.publish(key, None)
            return
        row = turn.now if self._body is None else self._body(turn.copy())
        turn.note(None)
        context.publish(key, dumps(kept(row, change.topic) if isinstance(row, dict) else row))


@dataclass(frozen=True, slots=True)
class OutboxRouter:
    """The definition that `outbox` gives."""

    route: str
    key: str
    payload: str

    def columns(self, given: Given) -> Mapping[str, str]:
        return NO_TYPES

    def hops(self, given: Given) -> Sequence[Hop]:
        _without_key("outbox", given)
        return (_Routed(self, Inputs(given)),)


class _Routed:
    """Only what is inserted is a message: an outbox is emptied by deletes, which say nothing."""

    def __init__(self, outbox: OutboxRouter, inputs: Inputs) -> None:
        self._outbox = outbox
        self._inputs = inputs

    def handle(self, record: Input, context: Context) -> None:
        change = self._inputs.change(record)
        if change is None:
            return
        turn = Turn(change, context)
        if turn.now is None:
            return
        sent = turn.own is not None
        turn.note(True)
        if sent:
            return
        route = self._text(turn.now, self._outbox.route)
        if not route:
            raise BadRecordError(
                f"{self._outbox.route} is null or empty: the message has no topic",
                where=change.topic,
                fix="fill it in when the row is written, then `tailrace dead-letters retry`",
            )
        key, payload = (self._text(turn.now, name) for name in (self._outbox.key, self._outbox.payload))
        context.publish(_bytes(key), _bytes(payload), table=route)

    def _text(self, row: Row, column: str) -> str | None:
        if column not in row:
            raise self._inputs.no_column(column, row)
        value = row[column]
        return value if value is None or isinstance(value, str) else dumps(value).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _without_key(what: str, given: Given) -> None:
    if given.key:
        raise ConfigError(
            f"{what} gives its records their keys by itself",
            where=f"processors.{given.processor}.key",
            fix="leave `key` out",
        )
