"""Redis as a target: a batch's rows, versions, parks and checkpoints in one script, on one server.

What is kept beside the rows (database of the url; all of it is needed, none may be evicted):

    _tailrace:identity            hash: id of this target and the group bound to it (H30)
    _tailrace:checkpoints         hash: [flow, topic, partition] -> "next_offset last_record cluster" (H14)
    _tailrace:floors              hash: [flow, schema, table] -> version that a truncate has raised (H5)
    _tailrace:tables              set of [flow, schema, table]
    _tailrace:rows:<table>        hash: record of each row -> its version, with `d` behind it: it is gone
    _tailrace:gone:<table>        zset: records of rows that are gone, or expire, by time
    _tailrace:rereads:<table>     hash: record -> version and why the row is not whole (H7)

and what redis_parked owns. A truncate is the one thing that takes several scripts: it raises the floor, then
takes rows away in steps, and only then goes the batch, so that a step that is not done is done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from orjson import loads

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.fold import BOTTOM
from consumers.apply.mapping import map_columns
from consumers.targets import redis_parked as parked
from consumers.targets import redis_scripts as scripts
from consumers.targets import redis_state_scripts as state_scripts
from consumers.targets.base import (
    Batch,
    FlowError,
    Gate,
    Outcome,
    Parked,
    RowsRefused,
    TableChanges,
    reread_cure,
)
from consumers.targets.redis_layout import Names, Plan, key_prefix, layout_of, packed, soft_mark
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_session import RedisSession
from consumers.targets.redis_write import Request, checkpoint_of, outcome_of, place_field, request_of
from streamer.config import Flow
from streamer.config import RedisTarget as Settings
from streamer.errors import ConfigError, FatalError
from streamer.redis.address import place as describe
from streamer.redis.store import POLICY_FIX, policy_problem, refusal

FORMAT = 1
STEP_ROWS = 300  # of a truncate or a purge: the server does nothing else for some 2 ms
PURGE_LIMIT = 20_000  # records forgotten in one sweep
QUEUES_READ = 100  # parked keys read at once: a queue may be long

_APPLY, _RAISE, _TRUNCATE = Script(scripts.APPLY), Script(scripts.RAISE_FLOOR), Script(scripts.TRUNCATE)
_FORGET, _PURGE, _COUNT = Script(scripts.FORGET_REREADS), Script(scripts.PURGE), Script(scripts.COUNT)
_IDENTITY, _CHECKPOINTS = Script(state_scripts.IDENTITY), Script(state_scripts.CHECKPOINTS)
_QUEUES, _ASK, _PROBE = Script(state_scripts.QUEUES), Script(state_scripts.ASK), Script(state_scripts.PROBE)
_HOLD, _DECIDE = Script(state_scripts.HOLD), Script(state_scripts.DECIDE)


class RedisTarget:
    """One session; not for concurrent use. `group`: the consumer group bound to this target."""

    def __init__(self, settings: Settings, group: str, flows: Sequence[Flow]) -> None:
        url = settings.url.get_secret_value()
        self.place = f"target {settings.name!r} ({describe(url)})"
        self._group = group
        self._flows = {flow.name: flow for flow in flows}
        self._session = RedisSession(url, self.place, f"tailrace-apply-{settings.name}")
        self._plans: dict[tuple[str, str, str, str], Plan] = {}
        self._id = ""
        self._clock_offset_s = 0.0

    @property
    def id(self) -> str:
        return self._id

    @property
    def clock_offset_s(self) -> float:
        return self._clock_offset_s

    def details(self) -> Mapping[str, Any]:
        return {"clock_offset_ms": round(self._clock_offset_s * 1000, 1)}

    # Session

    async def open(self) -> None:
        """Raises TargetUnavailable, ConfigError, FatalError."""
        session = self._session
        await session.connect()
        try:
            refused = refusal(await session.info(), self.place)
            if refused is not None:
                raise refused
            await session.script(_PROBE, (), ["_tailrace:probe"], opening=True)
            await self._identify()
            await self._read_clock()
        except BaseException:
            await session.close()
            raise

    async def _identify(self) -> None:
        made = str(uuid4()), self._group, FORMAT, round(time.time())
        id_, group, format_ = [value.decode() for value in await self._session.script(_IDENTITY, made)]
        if int(format_) > FORMAT:
            raise FatalError(
                f"the target's keys _tailrace:* have format {format_}, this program knows {FORMAT}",
                where=self.place,
                fix="run the version of Tailrace that made them, or a newer one",
            )
        if group != self._group:
            raise FatalError(
                f"this target belongs to the consumer group {group!r}, not to {self._group!r}",
                where=self.place,
                fix="give the target the name it had in the config (and `name:` too), or another database of"
                f" the server; to hand it over: HSET _tailrace:identity group {self._group}",
            )
        self._id = id_

    async def _read_clock(self) -> None:
        before = time.time()
        seconds, micros = await self._session.command("TIME")
        self._clock_offset_s = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2

    async def close(self) -> None:
        await self._session.close()

    # State

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        wanted = list(places)
        if not wanted:
            return {}
        await self._identify()  # somebody may have emptied the database under an open session
        found = await self._session.script(_CHECKPOINTS, [place_field(place) for place in wanted])
        return {place: checkpoint_of(place, text) for place, text in zip(wanted, found, strict=True)}

    async def findings(self) -> list[str]:
        found = []
        problem = policy_problem(await self._session.info())
        if problem:
            found.append(f"{problem}: {POLICY_FIX}")
        for names in await self._tables():
            count = int(await self._session.command("HLEN", names.rereads))
            if count:
                found.append(
                    f"flow {names.flow}: {count} rows of {names.schema}.{names.table} are not whole until"
                    f" they are read again from the source: HGETALL '{names.rereads}' in the target"
                    + reread_cure(self._flows.get(names.flow))
                )
        return found

    async def _tables(self) -> list[Names]:
        found = await self._session.command("SMEMBERS", "_tailrace:tables")
        return [Names(*loads(name)) for name in sorted(found)]

    async def sweep(self, keep_s: float) -> None:
        left = PURGE_LIMIT
        for names in await self._tables():
            flow = self._flows.get(names.flow)
            while flow is not None and left > 0:
                args = *self._layout(flow, names), names.rows, names.gone, round(keep_s * 1e6), STEP_ROWS
                done = int(await self._session.script(_PURGE, args))
                left -= done
                if done < STEP_ROWS:
                    break
        await self._forget_deletes()
        await self._read_clock()

    async def _forget_deletes(self) -> None:
        before_us = await self._now_us() - round(parked.DELETED_KEEP_S * 1e6)
        places = [Place(*loads(f)) for f in await self._session.command("HKEYS", "_tailrace:checkpoints")]
        for flow, topic in sorted({place[:2] for place in places}):
            key = parked.deleted_key(flow, topic)
            await self._session.command("ZREMRANGEBYSCORE", key, "-inf", before_us)

    async def _now_us(self) -> int:
        seconds, micros = await self._session.command("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    @staticmethod
    def _layout(flow: Flow, names: Names) -> tuple[str, str]:
        return layout_of(flow), key_prefix(flow, names.schema, names.table)

    # What waits

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        session = self._session
        if asked:
            queues = await session.command("HKEYS", "_tailrace:asked")
        else:
            queues = await session.command("SMEMBERS", parked.PARKED)
        if places is not None:
            wanted = set(places)
            queues = [queue for queue in queues if parked.place_of(queue) in wanted]
        queues = sorted(queues)
        found = []
        for start in range(0, len(queues), QUEUES_READ):
            some = queues[start : start + QUEUES_READ]
            for queue, (wish, entries) in zip(some, await session.script(_QUEUES, some), strict=True):
                found += [parked.entry_of(queue, entry, wish) for entry in entries]
        return sorted(found, key=lambda entry: (entry.place, entry.key, entry.sequence))

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        queues = {parked.queue_of(place, key) for place, key in keys}
        return int(await self._session.script(_ASK, [parked.asked_text(action, who), *queues]))

    async def gates(self) -> list[Gate]:
        found = await self._session.command("HGETALL", parked.GATES)
        return sorted(_gates(found), key=lambda gate: (gate.flow, gate.topic))

    async def hold(self, gate: Gate) -> None:
        args = parked.gate_field(gate), gate.state, gate.since_us, parked.gate_rest(gate)
        await self._session.script(_HOLD, args)

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        args = parked.gate_fields_of(flow), state, up_to_us, parked.who_text(who)
        return _gates(await self._session.script(_DECIDE, args))

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        since_us = await self._now_us() - round(window_s * 1e6)
        key = parked.deleted_key(flow, topic)
        found = await self._session.command("ZRANGEBYSCORE", key, since_us, "+inf")
        return sum(int(entry.rpartition(b" ")[2]) for entry in found)

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        names = Names(flow, schema, table)
        return int(await self._session.script(_COUNT, (names.rows, names.gone)))

    # Batches

    async def prepare(self, batch: Batch) -> None:
        return

    async def apply(self, batch: Batch) -> Outcome:
        """Raises TargetUnavailable (all of it again later), RowsRefused (again without those rows) and
        FlowError (again without that flow)."""
        for changes in batch.tables:
            self._plan(changes, batch)
        request = await request_of(batch, self._plans)
        if request.unfit:
            lost = await self._lost(batch)
            if rows := [row for row in request.unfit if row.place not in lost]:
                raise RowsRefused(rows, where=self.place)
        for changes in batch.tables:
            if changes.floor > BOTTOM:
                await self._truncate(batch, changes)
        reply = await _send(self._session, request)
        return outcome_of(batch, request, reply, self.place)

    def _plan(self, changes: TableChanges, batch: Batch) -> None:
        """Plans of the batch's schema records. Raises FlowError."""
        flow = self._flows[changes.flow]
        for schema_id in changes.schema_ids | {changes.record.id}:
            known = flow.name, changes.schema, changes.table, schema_id
            if known not in self._plans:
                record = batch.records.get(schema_id, changes.record)
                try:
                    plan = Plan(flow, changes.schema, changes.table, map_columns(flow, record, None))
                except ConfigError as error:
                    raise FlowError(flow.name, error) from error
                self._plans[known] = plan

    async def _lost(self, batch: Batch) -> set[Place]:
        if not batch.moves:
            return set()
        stands = await self._session.command(
            "HMGET", "_tailrace:checkpoints", *[place_field(move.place) for move in batch.moves]
        )
        return {
            move.place
            for move, stand in zip(batch.moves, stands, strict=True)
            if stand is None or checkpoint_of(move.place, stand).next_offset != move.expected
        }

    async def _truncate(self, batch: Batch, changes: TableChanges) -> None:
        """Raise the floor and take away what is at or below it; also what a killed process has left."""
        place = Place(changes.flow, changes.topic, changes.floor_partition)
        expected = next((move.expected for move in batch.moves if move.place == place), None)
        if expected is None:
            return
        names, floor = Names(changes.flow, changes.schema, changes.table), packed(changes.floor)
        session = self._session
        if int(await session.script(_RAISE, (place_field(place), expected, names.name, floor))) != 1:
            return
        flow = self._flows[changes.flow]
        layout, mark = self._layout(flow, names), soft_mark(flow, changes.floor_us)
        cursor: bytes | int = 0
        while True:
            args = *layout, names.rows, names.gone, names.rereads, floor, cursor, STEP_ROWS, *mark
            cursor = await session.script(_TRUNCATE, args)
            if int(cursor) == 0:
                break
        while True:
            cursor = await session.script(_FORGET, (names.rereads, floor, cursor, STEP_ROWS))
            if int(cursor) == 0:
                break


async def _send(session: RedisSession, request: Request) -> list[Any]:
    """Rows, checkpoints and all: one command, which the server carries out whole or not at all."""
    return list(await session.script(_APPLY, request.args, request.keys))


def _gates(found: Sequence[bytes] | Mapping[bytes, bytes]) -> list[Gate]:
    """HGETALL's reply, as the client or a script gives it."""
    items = found.items() if isinstance(found, Mapping) else zip(found[::2], found[1::2], strict=True)
    return [parked.gate_of(field, text) for field, text in items]
