"""Where one row is: in the source, in the log, in each target; and what is between them.

Reads everything as reconcile does, of one key, and waits for nothing: what is on its way is said to be so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from consumers.apply.checkpoint import Place
from consumers.keys import WantedKey
from consumers.last_proofs import LastProofs
from consumers.reconcile.canonical import canonical
from consumers.reconcile.job import refused
from consumers.reconcile.keys import event_value
from consumers.reconcile.mapping import Incomparable
from consumers.reconcile.origins.base import Captured, Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.sides.base import Key, Row
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import Sides, make_sides
from consumers.tail import Record, Wanted, tail
from consumers.targets.base import Gate, Parked
from consumers.targets.registry import target_of
from streamer.config import Config, Flow
from streamer.config.base import nearest
from streamer.errors import BadRecordError, ConfigError

EVENTS = 5  # the last ones of the key that are shown


@dataclass(frozen=True, slots=True)
class RowValues:
    """Canonical texts (docs/digest.md) by compared name; `stamp`: another whenever the row was written."""

    values: dict[str, str | None]
    stamp: str


@dataclass(slots=True)
class Answer:
    """One flow's. `state`: equal | absent | on_its_way | parked | held | different | unknown."""

    flow: str
    source: str
    target: str
    key: dict[str, Any]
    state: str = "unknown"
    text: str = ""
    source_row: RowValues | None = None
    target_row: RowValues | None = None
    columns: list[str] = field(default_factory=list)  # that differ
    events: list[Record] = field(default_factory=list)
    checkpoint: dict[int, int] = field(default_factory=dict)  # partition of the events -> next offset
    parked: list[Parked] = field(default_factory=list)
    held: list[Gate] = field(default_factory=list)
    proof: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


async def why(config: Config, brokers: str, table: str, key: str) -> AsyncGenerator[Answer, None]:
    """An answer for each flow that takes the table. Raises ConfigError for a table or key that is none."""
    proofs = await LastProofs(config).now()
    found, known = False, []
    for flow in config.flows.values():
        if refused(config, flow):
            continue
        async with AsyncExitStack() as stack:
            origin, store = make_origin(config, flow), make_store(config, flow)
            for each in (origin, store):
                stack.push_async_callback(each.close)
                await each.open()
            tables = await stack.enter_async_context(aclosing(origin.tables(flow)))
            async for captured in tables:
                known.append(f"{flow.source}.{captured.qualified}")
                if not _is_meant(table, flow, captured):
                    continue
                found = True
                schema, name = flow.place(captured.schema, captured.name)
                answer = Answer(flow.name, known[-1], f"{flow.target}.{schema}.{name}", {})
                answer.proof = proofs.get(flow.name)
                if isinstance(captured, Refused):
                    answer.text = captured.why
                else:
                    try:
                        await _rows(answer, await _sides(captured, store, flow, schema, name), key)
                    except Incomparable as reason:
                        answer.text = str(reason)
                    else:
                        await _standing(config, brokers, flow, captured, answer)
                        _judge(answer)
                yield answer
    if not found:
        raise ConfigError(
            f"no flow takes a table {table!r}",
            where=str(config.path),
            fix=nearest(table, sorted({name.rpartition(".")[2] for name in known} | set(known))),
        )


def _is_meant(table: str, flow: Flow, captured: Captured | Refused) -> bool:
    """`table`: SOURCE.SCHEMA.TABLE, SCHEMA.TABLE, or the table or entity alone."""
    return table in (
        f"{flow.source}.{captured.qualified}",
        captured.qualified,
        captured.name,
        f"{flow.source}.{captured.name}",
    )


async def _sides(captured: Captured, store: Any, flow: Flow, schema: str, name: str) -> Sides:
    if not await store.has(schema, name):
        raise Incomparable("the target has no such table")
    return await make_sides(captured, store, flow, where="", only=())


async def _rows(answer: Answer, sides: Sides, text: str) -> None:
    record = sides.captured.record
    kinds = {column.name: column.kind for column in record.columns}
    names = [pair.name for pair in sides.compared.key_pairs]
    values = key_values(text, [column.name for column in record.columns if column.key], kinds)
    answer.key = values
    key: Key = tuple(str(canonical(kinds[name], values[name])) for name in names)
    answer.notes = list(sides.compared.notes)
    compared = [pair.name for pair in sides.compared.pairs]
    ours = (await sides.source.rows([key])).get(key)
    theirs = (await sides.target.rows([key])).get(key)
    answer.source_row, answer.target_row = _values(compared, ours), _values(compared, theirs)
    if answer.source_row is not None and answer.target_row is not None:
        one, other = answer.source_row.values, answer.target_row.values
        answer.columns = [name for name in compared if one[name] != other[name]]


def _values(names: Sequence[str], row: Row | None) -> RowValues | None:
    return None if row is None else RowValues(dict(zip(names, row.texts, strict=True)), row.stamp)


def key_values(text: str, names: Sequence[str], kinds: dict[str, str]) -> dict[str, Any]:
    """A key as it is written: a JSON object or array, or the value alone of a key of one column."""
    example = f"write {orjson.dumps(dict.fromkeys(names, '...')).decode()}" + (
        ", or the value alone" if len(names) == 1 else ""
    )
    value: Any = None
    if text[:1] in "{[":
        try:
            value = orjson.loads(text)
        except ValueError:
            raise ConfigError(f"the key {text!r} is no JSON", fix=example) from None
    if isinstance(value, list) and len(value) == len(names):
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict):
        if value.keys() != set(names):
            raise ConfigError(
                f"the key has the columns {', '.join(names)}, not {', '.join(value)}", fix=example
            )
        return {name: value[name] for name in names}
    if len(names) != 1 or isinstance(value, list):
        raise ConfigError(f"the key has {len(names)} columns: {', '.join(names)}", fix=example)
    try:
        return {names[0]: event_value(kinds[names[0]], text)}
    except (ValueError, BadRecordError):
        raise ConfigError(f"{text!r} is no value of the key's column {names[0]}", fix=example) from None


async def _standing(config: Config, brokers: str, flow: Flow, captured: Captured, answer: Answer) -> None:
    """What the log has of the key, and what the target says of its partitions."""
    if captured.log is None:
        answer.notes.append("nothing captures it: there are no events")
        return
    key = WantedKey(orjson.dumps(answer.key).decode())
    wanted = Wanted(captured.topic, key, number=EVENTS)
    async with aclosing(tail(brokers, config.kafka.security, config.name, wanted)) as records:
        answer.events = [record async for record in records]
    target = target_of(config, flow.target)
    try:
        await target.open()
        places = [Place(flow.name, captured.topic, p) for p in sorted({r.partition for r in answer.events})]
        stands = (await target.look(places)).stands
        answer.checkpoint = {place.partition: offset for place, offset in stands.items()}
        parked = await target.parked(places)
        answer.parked = [each for each in parked if key.fits(each.key)]
        gates = await target.gates()
        answer.held = [g for g in gates if (g.flow, g.topic, g.state) == (flow.name, captured.topic, "held")]
    finally:
        await target.close()


def _judge(answer: Answer) -> None:
    ours, theirs = answer.source_row, answer.target_row
    waiting = [r for r in answer.events if r.offset >= answer.checkpoint.get(r.partition, 0)]
    if answer.parked:
        first = min(answer.parked, key=lambda parked: parked.sequence)
        target = answer.target.split(".", 1)[0]
        answer.state = "parked"
        answer.text = (
            f"the target refused it ({first.code}): {first.message}\n"
            f"  -> `tailrace dead-letters show {target}`, then `retry` or `discard`"
        )
    elif ours is None and theirs is None:
        answer.state, answer.text = "absent", "neither the source nor the target has it"
    elif ours is not None and theirs is not None and not answer.columns:
        answer.state, answer.text = "equal", "source and target have the same row"
    elif answer.held:
        answer.state = "held"
        answer.text = f"flow {answer.flow} holds a {answer.held[0].kind}: `tailrace approve {answer.flow}`"
    elif waiting:
        last = waiting[-1]
        answer.state = "on_its_way"
        answer.text = (
            f"its last change is at [{last.partition}]@{last.offset}, and the target has applied up to"
            f" {answer.checkpoint.get(last.partition, 0)}: see `tailrace lag`"
        )
    else:
        what = f"the rows differ in {', '.join(answer.columns)}"
        if ours is None or theirs is None:
            what = f"it is in the {'target' if ours is None else 'source'} alone"
        answer.state = "different"
        answer.text = (
            f"{what}, and all events of it in the log are applied\n  -> a change of this moment is not"
            f" captured yet; what stays is drift: `tailrace reconcile {answer.flow} --dry-run`"
        )
