"""Redis as a target: one server, where a batch is one script, or a Redis Cluster.

What is kept beside the rows (database of the url; all of it is needed, none may be evicted). On a cluster the
first five begin with `_tailrace:{state}:`, and the others are in the slots of their rows (redis_slots,
redis_marks):

    _tailrace:identity            hash: id of this target and the group bound to it (H30)
    _tailrace:checkpoints         hash: [flow, topic, partition] -> "next_offset last_record cluster" (H14)
    _tailrace:replays             hash: [flow, topic, partition] -> "until_offset who": set back by a person
    _tailrace:floors              hash: [flow, schema, table] -> version that a truncate has raised (H5)
    _tailrace:tables              set of [flow, schema, table]
    _tailrace:rows:<table>        hash: record of each row -> its version, with `d` behind it: it is gone
    _tailrace:gone:<table>        zset: records of rows that are gone, or expire, by time
    _tailrace:rereads:<table>     hash: record -> version and why the row is not whole (H7)

and what redis_parked owns. A truncate is the one thing that takes several scripts: it raises the floor, then
takes rows away in steps, and only then goes the batch, so that a step that is not done is done again.
Rows themselves are written by redis_one and redis_cluster_rows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from msgspec.msgpack import encode
from orjson import loads

from consumers.apply.checkpoint import ANYWHERE, Checkpoint, Move, Place, Rewind
from consumers.apply.fold import BOTTOM
from consumers.apply.mapping import map_columns
from consumers.targets import redis_parked as parked
from consumers.targets import redis_scripts as scripts
from consumers.targets import redis_state_scripts as state_scripts
from consumers.targets.ahead import rows_ahead
from consumers.targets.base import (
    DECIDED,
    Batch,
    FlowError,
    Gate,
    Look,
    Outcome,
    Parked,
    Refused,
    RowsRefused,
    TableChanges,
    Unwhole,
    Versions,
    reread_cure,
)
from consumers.targets.redis_cluster import Call, ClusterSession
from consumers.targets.redis_cluster_rows import ClusterRows
from consumers.targets.redis_layout import (
    CLUSTER,
    ONE_SERVER,
    VERSION_BYTES,
    Arg,
    Names,
    Plan,
    Space,
    Unfit,
    key_prefix,
    layout_of,
    packed,
    soft_mark,
    unpacked,
)
from consumers.targets.redis_marks import STATE_KEYS
from consumers.targets.redis_one import OneServer
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_session import RedisSession
from consumers.targets.redis_slots import tags
from consumers.targets.redis_write import checkpoint_of, last_text, place_field
from streamer.config import Flow
from streamer.config import RedisTarget as Settings
from streamer.config.stores import if_shared
from streamer.errors import ConfigError, FatalError
from streamer.redis.address import place as describe
from streamer.redis.rights import apply_rights
from streamer.redis.store import POLICY_FIX, in_cluster, policy_problem, refusal

FORMAT = 1
PURGE_LIMIT = 20_000  # records forgotten in one sweep
PIN_ATTEMPTS = 100  # a script takes milliseconds, and so does a batch of apply between two of them
QUEUES_READ = 100  # parked keys read at once: a queue may be long

_PROBE = Script(state_scripts.PROBE)


class _Scripts:
    """On the target's own state, wherever it is."""

    def __init__(self, space: Space) -> None:
        self.identity, self.checkpoints = (
            Script(text, space) for text in (state_scripts.IDENTITY, state_scripts.CHECKPOINTS)
        )
        self.queues, self.ask = Script(state_scripts.QUEUES, space), Script(state_scripts.ASK, space)
        self.hold, self.decide = Script(state_scripts.HOLD, space), Script(state_scripts.DECIDE, space)
        self.rewind, self.floor = Script(state_scripts.REWIND, space), Script(scripts.RAISE_FLOOR, space)


class RedisTarget:
    """One session; not for concurrent use. `group`: the consumer group bound to this target."""

    def __init__(self, settings: Settings, group: str, flows: Sequence[Flow]) -> None:
        url = settings.url.get_secret_value()
        self.place = f"target {settings.name!r} ({describe(url)})"
        self._group = group
        self._flows = {flow.name: flow for flow in flows}
        self._wanted = url, self.place, f"tailrace-apply-{settings.name}"
        self._on_one_server()
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

    def _on_one_server(self) -> None:
        session = RedisSession(*self._wanted, apply_rights(self._flows.values()))
        self._session: RedisSession | ClusterSession = session
        self._rows: OneServer | ClusterRows = OneServer(session)
        self._space, self._scripts = ONE_SERVER, _Scripts(ONE_SERVER)
        self._state_keys: Sequence[str] = ()

    def _on_cluster(self) -> None:
        session = ClusterSession(*self._wanted, apply_rights(self._flows.values(), cluster=True))
        self._session, self._rows = session, ClusterRows(session)
        self._space, self._scripts, self._state_keys = CLUSTER, _Scripts(CLUSTER), STATE_KEYS

    async def open(self) -> None:
        """Raises TargetUnavailable, ConfigError, FatalError."""
        await self._connect()
        try:
            for node, info in (await self._session.infos()).items():
                if refused := refusal(info, f"{self.place}, {node}" if self._is_cluster else self.place):
                    raise refused
            await self._probe()
            await self._identify()
            await self._read_clock()
        except BaseException:
            await self._session.close()
            raise

    async def _connect(self) -> None:
        """The server of the url says what it is; a cluster's nodes are known to each other from then on."""
        try:
            await self._session.connect()
            if not self._is_cluster and any(map(in_cluster, (await self._session.infos()).values())):
                await self._session.close()
                self._on_cluster()
                await self._session.connect()
        except ConfigError:
            if self._is_cluster:  # it may be one server by now
                self._on_one_server()
            raise

    @property
    def _is_cluster(self) -> bool:
        return isinstance(self._session, ClusterSession)

    async def _probe(self) -> None:
        if isinstance(self._session, ClusterSession):
            keys = [f"_tailrace:probe:{{{tags()[slot]}}}" for slot in self._session.masters]
            await self._session.scripts([Call(_PROBE, (key,), ()) for key in keys], opening=True)
        else:
            await self._session.script(_PROBE, (), ["_tailrace:probe"], opening=True)

    async def _ask(self, script: Script, args: Sequence[Arg]) -> Any:
        """Of the target's own state."""
        return await self._session.script(script, args, self._state_keys)

    async def _identify(self) -> None:
        made = str(uuid4()), self._group, FORMAT, round(time.time())
        id_, group, format_ = [value.decode() for value in await self._ask(self._scripts.identity, made)]
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
                fix=f"{if_shared(group, self._group, 'redis')}give the target the name it had in the config"
                " (and `name:` too), or another database of the server; to hand it over:"
                f" HSET {self._space.key('identity')} group {self._group}",
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
        fields = [place_field(place) for place in wanted]
        found = await self._ask(self._scripts.checkpoints, fields)
        if isinstance(self._rows, ClusterRows):
            stands = {p: checkpoint_of(p, text).next_offset for p, text in zip(wanted, found, strict=True)}
            if await self._rows.marks.lower(stands):
                found = await self._ask(self._scripts.checkpoints, fields)
        replays = await self._session.command("HMGET", self._space.key("replays"), *fields)
        return {
            place: checkpoint_of(place, text, replay)
            for place, text, replay in zip(wanted, found, replays, strict=True)
        }

    async def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        wanted = list(rewinds)
        args = [who]
        for place, next_offset, last in wanted:
            args += place_field(place), str(next_offset), last_text(last) or "-"
        found = await self._ask(self._scripts.rewind, args)
        return {
            place: checkpoint_of(place, text)
            for (place, _, _), text in zip(wanted, found, strict=True)
            if text
        }

    async def look(self, places: Iterable[Place]) -> Look:
        wanted = list(places)
        id_ = await self._session.command("HGET", self._space.key("identity"), "id")
        self._id = id_.decode() if id_ else ""
        stands = await self._stands(wanted)
        if isinstance(self._rows, ClusterRows):
            for place, mark in (await self._rows.marks.lowest(list(stands))).items():
                stands[place] = min(stands[place], mark)
        return Look(self._id, stands)

    async def _stands(self, places: Sequence[Place]) -> dict[Place, int]:
        """Next offsets of those that are there."""
        if not places:
            return {}
        fields = [place_field(place) for place in places]
        found = await self._session.command("HMGET", self._space.key("checkpoints"), *fields)
        return {
            place: checkpoint_of(place, text).next_offset
            for place, text in zip(places, found, strict=True)
            if text is not None
        }

    async def findings(self) -> list[str]:
        found = []
        for node, info in (await self._session.infos()).items():
            if problem := policy_problem(info):
                where = f"{node}: " if self._is_cluster else ""
                found.append(f"{where}{problem}: {POLICY_FIX}")
        for names, count, key in await self._rows.waiting(await self._tables()):
            found.append(
                f"flow {names.flow}: {count} rows of {names.schema}.{names.table} are not whole until"
                f" they are read again from the source: HGETALL '{key}' in the target"
                + reread_cure(self._flows.get(names.flow))
            )
        return found

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        """Of every topic: notes are kept by the target's tables."""
        found: dict[tuple[str, str, str], list[Unwhole]] = {}
        for names in await self._rows.noted(await self._tables()):
            rows = found.setdefault((names.flow, names.schema, names.table), [])
            cursor = b"0"
            while len(rows) < limit:
                cursor, fields = await self._session.command("HSCAN", names.rereads, cursor, "COUNT", limit)
                for note in fields[1::2]:
                    key, _, _ = note[VERSION_BYTES:].partition(b"\n")
                    version = unpacked(note[:VERSION_BYTES])
                    rows.append(Unwhole(names.flow, "", names.schema, names.table, key, version))
                if cursor == b"0":
                    break
        return [row for rows in found.values() for row in rows]

    async def _tables(self) -> list[Names]:
        found = await self._session.command("SMEMBERS", self._space.key("tables"))
        return [Names(*loads(name)) for name in sorted(found)]

    async def sweep(self, keep_s: float) -> None:
        left = PURGE_LIMIT
        for names in await self._tables():
            flow = self._flows.get(names.flow)
            if flow is not None and left > 0:
                left -= await self._rows.purge(names, self._layout(flow, names), round(keep_s * 1e6), left)
        await self._forget_deletes()
        await self._read_clock()

    async def _forget_deletes(self) -> None:
        before_us = await self._now_us() - round(parked.DELETED_KEEP_S * 1e6)
        fields = await self._session.command("HKEYS", self._space.key("checkpoints"))
        places = [Place(*loads(field)) for field in fields]
        for flow, topic in sorted({place[:2] for place in places}):
            key = parked.deleted_key(self._space, flow, topic)
            await self._session.command("ZREMRANGEBYSCORE", key, "-inf", before_us)

    async def _now_us(self) -> int:
        seconds, micros = await self._session.command("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    @staticmethod
    def _layout(flow: Flow, names: Names) -> tuple[str, str]:
        return layout_of(flow), key_prefix(flow, names.schema, names.table)

    async def versions(self, batch: Batch) -> Versions | None:
        return None

    # What waits

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        session = self._session
        if asked:
            queues = await session.command("HKEYS", self._space.key("asked"))
        else:
            queues = await session.command("SMEMBERS", self._space.key("parked"))
        if places is not None:
            wanted = set(places)
            queues = [queue for queue in queues if parked.place_of(queue) in wanted]
        queues = sorted(queues)
        found = []
        for start in range(0, len(queues), QUEUES_READ):
            some = queues[start : start + QUEUES_READ]
            for queue, (wish, entries) in zip(some, await self._ask(self._scripts.queues, some), strict=True):
                found += [parked.entry_of(queue, entry, wish) for entry in entries]
        return sorted(found, key=lambda entry: (entry.place, entry.key, entry.sequence))

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        queues = {parked.queue_of(place, key) for place, key in keys}
        return int(await self._ask(self._scripts.ask, [parked.asked_text(action, who), *queues]))

    async def gates(self) -> list[Gate]:
        found = await self._session.command("HGETALL", self._space.key("gates"))
        return sorted(_gates(found), key=lambda gate: (gate.flow, gate.topic))

    async def hold(self, gate: Gate) -> None:
        args = parked.gate_field(gate), gate.state, gate.since_us, parked.gate_rest(gate)
        stays = gate.covered_since_us, int(gate.state in DECIDED)
        await self._ask(self._scripts.hold, (*args, *stays))

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        args = parked.gate_fields_of(flow), state, up_to_us, parked.who_text(who)
        return _gates(await self._ask(self._scripts.decide, args))

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        since_us = await self._now_us() - round(window_s * 1e6)
        key = parked.deleted_key(self._space, flow, topic)
        found = await self._session.command("ZRANGEBYSCORE", key, since_us, "+inf")
        return sum(int(entry.rpartition(b" ")[2]) for entry in found)

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        return await self._rows.count(Names(flow, schema, table))

    async def count_below(self, changes: TableChanges, limit: int) -> int:
        names = Names(changes.flow, changes.schema, changes.table)
        flow, layout = self._flows[changes.flow], self._layout(self._flows[changes.flow], names)
        self._plan(changes, Batch([changes], [], {changes.record.id: changes.record}, ""))
        behind: list[Arg] = [await self._kept(changes, None, ()), *soft_mark(flow, changes.floor_us)]
        return await self._rows.count_below(names, layout, packed(changes.floor), behind, limit)

    async def _kept(self, changes: TableChanges, batch: Batch | None, lost: Collection[Place]) -> bytes:
        """Names of the records that a floor passes over, as the scripts read them."""
        subject = changes.flow, changes.topic
        stored = [
            (entry.place, entry.key)
            for entry in await self.parked()
            if entry.place[:2] == subject and entry.decodes and entry.version > changes.floor
        ]
        plan = self._plans[changes.flow, changes.schema, changes.table, changes.record.id]
        names = []
        for row in rows_ahead(changes, stored, batch, lost):
            with suppress(Unfit):  # such a row has no place
                names.append(plan.named(row, b"").field)
        return encode(names) if names else b""

    # Batches

    async def prepare(self, batch: Batch) -> None:
        for changes in batch.tables:
            try:
                self._plan(changes, batch)
            except FlowError:
                continue  # left for `apply` to name
            await self._rows.make_ready(changes, self._plans)

    async def apply(self, batch: Batch) -> Outcome:
        """Raises TargetUnavailable (all of it again later), RowsRefused (again without those rows) and
        FlowError (again without that flow)."""
        if not any(move.expected == ANYWHERE for move in batch.moves):
            return await self._apply(batch)
        for _ in range(PIN_ATTEMPTS):
            stands = (await self.look([move.place for move in batch.moves])).stands
            ats = [(move.place, stands.get(move.place, ANYWHERE)) for move in batch.moves]
            pinned = replace(batch, moves=[Move(place, at, at, None) for place, at in ats])
            outcome = await self._apply(pinned)
            if not outcome.lost:
                return outcome
        return outcome

    async def _apply(self, batch: Batch) -> Outcome:
        for changes in batch.tables:
            self._plan(changes, batch)
        rows = self._rows
        if isinstance(rows, ClusterRows):
            slots = await rows.request(batch, self._plans)
            lost = await self._lost(batch)
            await self._make_way(batch, slots.unfit, lost)
            return await rows.write(batch, slots, self._plans, lost)
        request = await rows.request(batch, self._plans)
        if request.unfit:
            lost = await self._lost(batch)
        await self._make_way(batch, request.unfit, lost if request.unfit else ())
        return await rows.write(batch, request)

    async def _make_way(self, batch: Batch, unfit: Sequence[Refused], lost: Collection[Place]) -> None:
        """What comes before the rows."""
        if rows := [row for row in unfit if row.place not in lost]:
            raise RowsRefused(rows, where=self.place)
        for changes in batch.tables:
            if changes.floor > BOTTOM:
                await self._truncate(batch, changes)

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
        stands = await self._stands([move.place for move in batch.moves])
        return {move.place for move in batch.moves if stands.get(move.place) != move.expected}

    async def _truncate(self, batch: Batch, changes: TableChanges) -> None:
        """Raise the floor and take away what is at or below it; also what a killed process has left."""
        place = Place(changes.flow, changes.topic, changes.floor_partition)
        expected = next((move.expected for move in batch.moves if move.place == place), None)
        if expected is None:
            return
        names, floor = Names(changes.flow, changes.schema, changes.table), packed(changes.floor)
        raised = place_field(place), expected, names.name, floor
        if int(await self._ask(self._scripts.floor, raised)) != 1:
            return
        flow = self._flows[changes.flow]
        kept = await self._kept(changes, batch, await self._lost(batch))
        behind: list[Arg] = [kept, *soft_mark(flow, changes.floor_us)]
        await self._rows.clear(names, self._layout(flow, names), floor, behind)


def _gates(found: Sequence[bytes] | Mapping[bytes, bytes]) -> list[Gate]:
    """HGETALL's reply, as the client or a script gives it."""
    items = found.items() if isinstance(found, Mapping) else zip(found[::2], found[1::2], strict=True)
    return [parked.gate_of(field, text) for field, text in items]
