"""Where one row is: in the source, in the log, in each target; and what is between them.

Reads everything as reconcile does, of one key, and waits for nothing: what is on its way is said to be so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence, Set
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from consumers.apply.checkpoint import Place
from consumers.apply.pauses import Pause, paused_in
from consumers.key_file import Written, key_columns, key_of
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
from streamer.config.base import for_shell, nearest
from streamer.config.derived import processor_of
from streamer.errors import ConfigError

EVENTS = 5  # the last ones of the key that are shown


@dataclass(frozen=True, slots=True)
class RowValues:
    """Canonical texts (docs/digest.md) by compared name, floats as numbers; `stamp`: another whenever the row
    was written."""

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
    paused: Pause | None = None
    proof: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


async def why(config: Config, brokers: str, table: str, key: str) -> AsyncGenerator[Answer, None]:
    """An answer for each flow that takes the table. Raises ConfigError for a table or key that is none."""
    proofs = await LastProofs(config).now()
    found = False
    known: set[str] = set()
    for flow in config.flows.values():
        reason = refused(config, flow)
        if reason:
            if processor_of(config, flow) is not None and table == flow.source_pattern:
                found = True
                yield Answer(flow.name, table, flow.to, {}, text=reason)
            continue
        async with AsyncExitStack() as stack:
            origin, store = make_origin(config, flow), make_store(config, flow)
            for each in (origin, store):
                stack.push_async_callback(each.close)
                await each.open()
            tables = await stack.enter_async_context(aclosing(origin.tables(flow)))
            async for captured in tables:
                derived = captured.qualified == flow.source_pattern
                where = captured.qualified if derived else f"{flow.source}.{captured.qualified}"
                known |= {captured.name, where}
                if not _is_meant(table, flow, captured):
                    continue
                found = True
                schema, name = flow.place(captured.schema, captured.name)
                answer = Answer(flow.name, where, f"{flow.target}.{schema}.{name}", {})
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
            fix=nearest(table, sorted(known), for_shell),
        )


def _is_meant(table: str, flow: Flow, captured: Captured | Refused) -> bool:
    """`table`: SOURCE.SCHEMA.TABLE, SCHEMA.TABLE, or the table or entity alone."""
    return table in (
        flow.source_pattern,
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
    columns = key_columns(record)
    written = key_of(Written(f"the key of {answer.source}", text), columns)
    answer.key = values = dict(zip([column.name for column in columns], written, strict=True))
    key: Key = tuple(str(canonical(kinds[name], values[name])) for name in names)
    answer.notes = list(sides.compared.notes)
    compared = [pair.name for pair in sides.compared.pairs]
    ours = (await sides.source.rows([key])).get(key)
    theirs = (await sides.target.rows([key])).get(key)
    floats = {name for name in compared if kinds.get(name) == "float"}
    answer.source_row, answer.target_row = (_values(compared, row, floats) for row in (ours, theirs))
    if answer.source_row is not None and answer.target_row is not None:
        one, other = answer.source_row.values, answer.target_row.values
        answer.columns = [name for name in compared if one[name] != other[name]]


def _values(names: Sequence[str], row: Row | None, floats: Set[str]) -> RowValues | None:
    if row is None:
        return None
    texts = dict(zip(names, row.texts, strict=True))
    for name in floats:
        if (text := texts[name]) is not None:
            texts[name] = str(event_value("float", text))
    return RowValues(texts, row.stamp)


async def _standing(config: Config, brokers: str, flow: Flow, captured: Captured, answer: Answer) -> None:
    """What the log has of the key, and what the target says of its partitions."""
    log = captured.log
    if log is None:
        answer.notes.append("nothing captures it: there are no events")
        return
    key = WantedKey(orjson.dumps(answer.key).decode())
    wanted = Wanted(log.topic, key, number=EVENTS)
    async with aclosing(tail(brokers, config.kafka.security, config.name, wanted)) as records:
        answer.events = [record async for record in records]
    target = target_of(config, flow.target)
    try:
        await target.open()
        places = [Place(flow.name, log.topic, p) for p in sorted({r.partition for r in answer.events})]
        stands = (await target.look(places)).stands
        answer.checkpoint = {place.partition: offset for place, offset in stands.items()}
        parked = await target.parked(places)
        answer.parked = [each for each in parked if key.fits(each.key)]
        gates = await target.gates()
        answer.paused = paused_in(gates, flow.name)
        answer.held = [g for g in gates if (g.flow, g.topic, g.state) == (flow.name, log.topic, "held")]
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
    elif answer.paused is not None:
        answer.state = "paused"
        answer.text = f"flow {answer.flow} was paused {answer.paused.text}: `tailrace resume {answer.flow}`"
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
