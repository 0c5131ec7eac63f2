"""Gates: a truncate, too many deletes, or a reset that would take too much wait until a person decides.

`judge` says where a flow's part of a batch must end; it is pure. `Gates` is what one apply process knows
of gates: the target keeps them, and counts the deletes of every process. Nothing is read on behind a held
change, and nothing is remembered of it but the gate: the place of it is the checkpoint, and when it is read
again it is judged again, with the decision. What stops and starts partitions is the loop.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from consumers.apply.assemble import Decoded, Prepared
from consumers.apply.checkpoint import Place
from consumers.apply.floors import FEWEST_ROWS, Ask, Floors, nothing
from consumers.apply.fold import Event
from consumers.apply.gate_texts import (
    DELETES,
    FLOOR,
    FLOOR_ROWS_LIMIT,
    TRUNCATE,
    advice_of,
    letters_of,
    text_of,
)
from consumers.apply.modes import takes_floors
from consumers.targets.base import GATE_WINDOW_S, FlowError, Gate, TableChanges, Target
from streamer.changes.envelope import Change
from streamer.changes.schema import SchemaRecord
from streamer.config import Config, Flow, RedisSource

WINDOW_S = GATE_WINDOW_S
DEFAULT_SHARE = 0.1  # of Redis sources, since a cache is flushed more easily than a database is emptied
POLL_S = 1.0  # a decision is noticed within it; so are deletes of other processes
COUNT_AGE_S = 10.0  # a table's rows are counted again when the last count is older
NEAR = 0.5  # of the limit: from here on the table is counted anew for each batch, POLL_S apart

HELD, APPROVED, REFUSED = "held", "approved", "refused"

log = logging.getLogger(__name__)

Subject = tuple[str, str]  # flow and topic: what a gate holds
TableName = tuple[str, str, str]  # flow, schema and table in the target
Reach = Callable[[Callable[[], Awaitable[None]]], Awaitable[bool]]  # with the target's session; False: stop


@dataclass(frozen=True, slots=True)
class Rule:
    """What a flow holds. `share` of a table's rows, None: deletes pass. `floors`: of what a reset takes."""

    truncates: bool
    share: float | None
    floors: float | None = None


def rules_of(config: Config, flows: Iterable[Flow]) -> dict[str, Rule]:
    """Of the flows that hold something."""
    found = {}
    for flow in flows:
        share = flow.hold_deletes_above
        if "hold_deletes_above" not in flow.model_fields_set:
            share = DEFAULT_SHARE if isinstance(config.sources.get(flow.source), RedisSource) else None
        if flow.delete == "ignore" or flow.write == "append":
            share = None
        truncates = flow.truncate == "hold" and flow.write != "append"
        floors = share if share is not None else DEFAULT_SHARE if truncates else None
        rule = Rule(truncates, share, floors if takes_floors(flow) else None)
        if rule.truncates or rule.share is not None:
            found[flow.name] = rule
    return found


# The judge


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of the table: `rows` now, and how many were deleted within WINDOW_S; what is on its way included."""

    rows: int
    recent: int

    @property
    def before(self) -> int:
        """Rows that the table would have without those deletes."""
        return self.rows + self.recent


@dataclass(slots=True)
class Part:
    """A partition's events, and of its deletes' headers the size of the sweep, by offset.

    `passed`: deletes before this offset were let through once, into a store that has lost them since or, with
    `stays`, that has them still: then nothing is made or deleted by them, and a truncate is passed over: it
    has raised its floor, or was refused, perhaps long ago. `free`: offset of a reset's floor that may pass.
    """

    events: list[Event]
    sweeps: Mapping[int, int]
    passed: int = 0
    stays: bool = False
    free: int | None = None


@dataclass(slots=True)
class Verdict:
    """`ends`: by partition, the offset of the first change that is held. `passed`: deletes that count."""

    ends: dict[int, int] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    dropped: dict[int, list[Event]] = field(default_factory=dict)
    known: dict[int, set[int]] = field(default_factory=dict)  # replayed truncates, by offset: see Part
    floors: dict[int, Event] = field(default_factory=dict)  # of resets, whose rows are to be counted
    truncate: Change | None = None  # the one that is held
    goes: bool = True  # whether something of it goes to the writer
    made: int = 0  # rows that the batch makes
    total: int = 0  # deletes within WINDOW_S, with those that are judged
    kind: str = ""  # of what is held
    rows: int = 0
    captured_us: list[int] = field(default_factory=list)  # of what is seen to be held: times of capture

    def before(self, partition: int, offset: int) -> bool:
        end = self.ends.get(partition)
        return end is None or offset < end


@dataclass(slots=True)
class _Deletes:
    """Undecided ones of a partition."""

    first: int | None = None
    gone: dict[bytes | int, None] = field(default_factory=dict)  # keys not made again; without a key, offsets
    sweep: int = 0
    captured_us: list[int] = field(default_factory=list)


def ops_of(parts: Mapping[int, Part]) -> Counter[str]:
    """How many events of each kind; most batches have nothing that could be held."""
    counts: Counter[str] = Counter()
    for part in parts.values():
        counts.update([event[1][0] for event in part.events])  # by place: this is a hot path
    return counts


def _made(parts: Mapping[int, Part], ops: Counter[str]) -> int:
    """Rows that a batch without deletes makes."""
    again = ops_of(
        {n: p for n, p in parts.items() if p.stays and p.events and p.events[-1].offset < p.passed}
    )
    return ops["c"] + ops["r"] - again["c"] - again["r"]


def judge(rule: Rule, decision: Gate | None, parts: Mapping[int, Part], numbers: Numbers) -> Verdict:
    """`decision`: the gate of the flow and topic, once it is decided."""
    verdict = Verdict()
    found = {
        partition: _undecided(rule, decision, partition, part, verdict) for partition, part in parts.items()
    }
    if verdict.kind == TRUNCATE:
        verdict.rows = numbers.rows
    if rule.share is not None:
        total = numbers.recent + sum(len(deletes.gone) for deletes in found.values())
        verdict.total = max([total, *(deletes.sweep for deletes in found.values())])
        if verdict.total >= FEWEST_ROWS and verdict.total > rule.share * (numbers.before + verdict.made):
            _hold_deletes(verdict, found)
    verdict.passed = {
        partition: len(deletes.gone)
        for partition, deletes in found.items()
        if deletes.gone and (deletes.first is None or verdict.before(partition, deletes.first))
    }
    verdict.dropped = {
        partition: kept
        for partition, events in verdict.dropped.items()
        if (kept := [event for event in events if verdict.before(partition, event.offset)])
    }
    return verdict


def _undecided(rule: Rule, decision: Gate | None, partition: int, part: Part, verdict: Verdict) -> _Deletes:
    """The partition's deletes up to a truncate that is held, without what is decided already."""
    deletes = _Deletes()
    gone = deletes.gone
    for key, change, offset, _ in part.events:
        if change.op == "t" and rule.truncates:
            state = _decided(decision, TRUNCATE, change.capture_us, 0)
            if state == "" and part.stays and offset < part.passed:
                verdict.known.setdefault(partition, set()).add(offset)
            elif state == "":
                verdict.ends[partition] = offset
                verdict.kind = TRUNCATE
                verdict.truncate = change
                verdict.captured_us.append(change.capture_us)
                break
        elif change.op == "m" and change.is_floor and rule.floors is not None:
            state = _decided(decision, FLOOR, change.capture_us, 0)
            if state == "" and part.stays and offset < part.passed:
                verdict.known.setdefault(partition, set()).add(offset)
            elif state == "" and offset != part.free:
                verdict.ends[partition] = offset
                verdict.floors[partition] = Event(key, change, offset, False)
                break
        elif change.op == "d" and rule.share is not None:
            sweep = part.sweeps.get(offset, 0)
            state = _decided(decision, DELETES, change.capture_us, sweep)
            if state == "" and offset < part.passed:
                verdict.made -= not part.stays
            elif state == "":
                deletes.first = offset if deletes.first is None else deletes.first
                deletes.sweep = max(deletes.sweep, sweep)
                deletes.captured_us.append(change.capture_us)
                gone[offset if key is None else key] = None
        else:
            verdict.made += change.op in "cr" and not (part.stays and offset < part.passed)
            if gone and key is not None:
                gone.pop(key, None)
            continue
        if state == REFUSED:
            verdict.dropped.setdefault(partition, []).append(Event(key, change, offset, False))
    return deletes


def _decided(decision: Gate | None, kind: str, capture_us: int, sweep: int) -> str:
    """`approved`, `refused`, or nothing.

    A decision is of what was held then, not of what a replay brings years later: a little before the first
    held change (partitions are not of one time), up to its own time. A sweep goes on for a while after it:
    its size tells what belongs to it.
    """
    if decision is None or decision.kind != kind or decision.state == HELD:
        return ""
    window_us = WINDOW_S * 1e6
    until_us = decision.up_to_us + (window_us if sweep > 0 and sweep == decision.rows else 0)
    return decision.state if decision.since_us - window_us <= capture_us <= until_us else ""


def _hold_deletes(verdict: Verdict, found: Mapping[int, _Deletes]) -> None:
    """The batch that would cross the limit is held from its first delete on, in every partition."""
    for partition, deletes in found.items():
        if deletes.first is not None and verdict.before(partition, deletes.first):
            verdict.ends[partition] = deletes.first
            verdict.captured_us += deletes.captured_us
            if verdict.kind != TRUNCATE:
                verdict.kind, verdict.rows = DELETES, verdict.total


# What one process knows


class Gates:
    """Made for the flows that hold something; the other flows never come here."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        target: Target,
        reach: Reach,
        *,
        passed: Callable[[Place], int] = lambda _: 0,
        stays: Callable[[Place], bool] = lambda _: False,
        extent_of: Ask = nothing,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`passed`: up to which offset a place was applied before. `stays`: the target has it still.
        `extent_of`: of a topic's log."""
        self._rules = rules
        self._passed = passed
        self._stays = stays
        self._target = target
        self._reach = reach
        self._clock_us = clock_us
        self._known: dict[Subject, Gate] = {}  # as the target has them
        self._closed: dict[Subject, Gate] = {}  # held here, and not yet noted in the target
        self._truncates: dict[Subject, TableChanges] = {}  # of those, what is to be counted
        self._staged: dict[Subject, Verdict] = {}  # of the batch that is assembled
        self._batches: deque[dict[Subject, Verdict]] = deque()  # handed over and not written yet, in order
        self._on_way: dict[Subject, tuple[int, int]] = {}  # rows that those delete, and make
        self._recent: dict[Subject, tuple[int, int]] = {}  # deletes that the target knows of, and when asked
        self._written: dict[Subject, int] = {}  # deletes since then
        shares = {flow: rule.floors for flow, rule in rules.items() if rule.floors is not None}
        self._floors = Floors(shares, target, extent_of, clock_us)
        self._rows: dict[TableName, tuple[int, int]] = {}  # rows of the table, and when counted
        self._made: dict[Subject, int] = {}  # rows made since then, less those deleted
        self.loaded = False

    def holds(self, flow: str, topic: str) -> bool:
        """Nothing of the topic is to be read for the flow."""
        subject = flow, topic
        if flow not in self._rules:
            return False
        known = self._known.get(subject)
        return subject in self._closed or (known is not None and known.state == HELD)

    def waits(self, place: Place) -> bool:
        """The flow reads no further in the partition now, whether the topic is held or not."""
        return self.holds(place.flow, place.topic) or self._floors.wait(place)

    def held(self) -> list[Gate]:
        """What waits for a person, the target's and this process's own."""
        found = {(gate.flow, gate.topic): gate for gate in self.noted()}
        return [gate for _, gate in sorted({**found, **self._closed}.items()) if gate.flow in self._rules]

    def noted(self) -> list[Gate]:
        """What is in the target: a person who is told of it can decide it."""
        found = sorted((subject, gate) for subject, gate in self._known.items() if gate.state == HELD)
        return [gate for _, gate in found if gate.flow in self._rules]

    async def judge(
        self, flow: Flow, topic: str, record: SchemaRecord, decoded: dict[int, Decoded]
    ) -> dict[int, int]:
        """As assemble.Judge has it. What was refused is taken out of `decoded`."""
        subject = flow.name, topic
        self._staged.pop(subject, None)
        self._closed.pop(subject, None)  # the same batch again, without another flow
        self._truncates.pop(subject, None)
        rule = self._rules.get(flow.name)
        if rule is None:
            return {}
        parts = {}
        for p, part in decoded.items():
            place = Place(*subject, p)
            passed, stays = self._passed(place), self._stays(place)
            parts[p] = Part(part.events, part.sweeps, passed, stays, self._floors.free(place))
        verdict = await self._verdict(subject, rule, flow, record, parts)
        for partition, event in verdict.floors.items():
            self._floors.meet(Place(*subject, partition), event, record, flow)
        for partition, dropped in verdict.dropped.items():
            decoded[partition] = decoded[partition].without({event.offset for event in dropped})
        for partition, offsets in verdict.known.items():
            decoded[partition] = decoded[partition].without(offsets)
        return verdict.ends

    async def _verdict(
        self, subject: Subject, rule: Rule, flow: Flow, record: SchemaRecord, parts: Mapping[int, Part]
    ) -> Verdict:
        ops = ops_of(parts)
        decision = self._known.get(subject)
        if not ((rule.truncates and ops["t"]) or (rule.share is not None and ops["d"])):
            found = Verdict(made=_made(parts, ops))
            if rule.floors is not None and ops["m"]:
                found = judge(replace(rule, share=None), decision, parts, Numbers(0, 0))
            self._staged[subject] = found
            return found
        table = flow.name, *flow.place(record.schema, record.table)
        for count_age_s in (COUNT_AGE_S, POLL_S):
            if not await self._reach(partial(self._measure, subject, table, count_age_s)):
                # Stopping: nothing of this batch is written.
                return Verdict({p: part.events[0].offset for p, part in parts.items() if part.events})
            numbers = self._numbers(subject, table)
            verdict = judge(rule, decision, parts, numbers)
            if verdict.total < NEAR * (rule.share or 1) * numbers.before and not verdict.kind:
                break  # far from the limit: an older count will do
        if verdict.kind:
            now_us = self._clock_us()
            rows = max(0, numbers.before + verdict.made) if verdict.kind == DELETES else numbers.rows
            since_us = min([now_us, *verdict.captured_us])
            up_to_us = max(verdict.captured_us)
            self._closed[subject] = Gate(*subject, verdict.kind, HELD, verdict.rows, rows, since_us, up_to_us)
            verdict.goes = any(p.events and verdict.before(n, p.events[0].offset) for n, p in parts.items())
            if (change := verdict.truncate) is not None:
                floor = TableChanges(*subject, record, *table[1:], [], {record.id}, change.version)
                floor.floor_us = change.commit_us
                self._truncates[subject] = floor
        self._staged[subject] = verdict
        return verdict

    async def _measure(self, subject: Subject, table: TableName, count_age_s: float) -> None:
        """Ask the target for what is too old to judge by. Called while no batch is written."""
        now_us = self._clock_us()
        if now_us - self._recent.get(subject, (0, 0))[1] > POLL_S * 1e6:
            self._recent[subject] = await self._target.recent_deletes(*subject, WINDOW_S), now_us
            self._written.pop(subject, None)
        if now_us - self._rows.get(table, (0, 0))[1] > count_age_s * 1e6:
            self._rows[table] = await self._target.count_rows(*table), now_us
            self._made.pop(subject, None)

    def _numbers(self, subject: Subject, table: TableName) -> Numbers:
        deleted, made = self._on_way.get(subject, (0, 0))
        recent = self._recent[subject][0] + self._written.get(subject, 0) + deleted
        rows = self._rows[table][0] + self._made.get(subject, 0) + made - deleted
        return Numbers(max(0, rows), recent)

    # How far its batches are

    def count(self, prepared: Prepared) -> None:
        """Count what passes in a batch that goes to the writer, and write letters of what does not.

        Places that were let go while it was judged are not in it: they are read, and judged, again. With
        nothing left it does not go, and `written` is not called.
        """
        staged, self._staged = self._staged, {}
        moved = {(move.place.flow, move.place.topic) for move in prepared.batch.moves}
        if not moved:
            return
        staged = {subject: verdict for subject, verdict in staged.items() if subject in moved}
        for subject, verdict in staged.items():
            for partition, rows in verdict.passed.items():
                prepared.batch.deleted[Place(*subject, partition)] = rows
            for partition, events in verdict.dropped.items():
                decision = self._known[subject]
                place = Place(*subject, partition)
                count = "1 change is" if len(events) == 1 else f"{len(events):,} changes are"
                log.warning("flow %s: %s: %s dropped", *subject, count)
                prepared.letters += letters_of(place, events, decision, prepared.batch.records)
            deleted, made = self._on_way.get(subject, (0, 0))
            self._on_way[subject] = deleted + sum(verdict.passed.values()), made + verdict.made
        self._batches.append(staged)

    def written(self) -> None:
        """A batch that was counted is in the target, or never will be. Called with the session held, so that
        the target's own counts have it or have it not; the next of them mends what is attributed wrongly."""
        for subject, verdict in self._batches.popleft().items():
            deleted, made = self._on_way[subject]
            rows = sum(verdict.passed.values())
            self._on_way[subject] = deleted - rows, made - verdict.made
            self._written[subject] = self._written.get(subject, 0) + rows
            self._made[subject] = self._made.get(subject, 0) + verdict.made - rows

    # With the target

    async def load(self) -> None:
        """At the first placing of a process: what others, or the last run, have left."""
        if not self.loaded:
            await self.poll()

    async def poll(self) -> set[Subject]:
        """Note what is held, read what was decided. Gives what may go on, or must stop: `holds` says which.

        Raises TargetUnavailable.
        """
        before = {(gate.flow, gate.topic) for gate in self.held()}
        known = {(gate.flow, gate.topic): gate for gate in await self._target.gates()}
        for subject, closed in list(self._closed.items()):
            if subject in self._truncates and self._is_on_way(subject):
                continue  # what is before it may take rows, too: a reset's floor, deletes
            gate = await self._counted(closed)
            there = known.get(subject)
            if there is None or there.state == HELD or not there.covers(gate):
                known[subject] = self._known[subject] = await self._note(gate, there)
            self._closed.pop(subject, None)
            self._truncates.pop(subject, None)
        held, go_on = await self._floors.look(known)
        for gate in held:
            subject = gate.flow, gate.topic
            known[subject] = await self._note(gate, known.get(subject))
        for subject, gate in self._known.items():
            if gate.state != HELD and subject not in known:  # a store that was emptied: it is decided still
                await self._target.hold(gate)
                known[subject] = gate
        for subject, gate in known.items():
            if gate.state != HELD and subject in before:
                log.warning("flow %s: %s by %s: %s", gate.flow, gate.state, gate.decided_by, text_of(gate))
        self._known = known
        self.loaded = True
        after = {(gate.flow, gate.topic) for gate in self.held()}
        return (before ^ after) | go_on

    def _is_on_way(self, subject: Subject) -> bool:
        """Whether a batch of it is not in the target yet."""
        staged = self._staged.get(subject)
        return (staged is not None and staged.goes) or any(subject in batch for batch in self._batches)

    async def _counted(self, gate: Gate) -> Gate:
        """A truncate's rows once all that came before it is in the target."""
        changes = self._truncates.get((gate.flow, gate.topic))
        if changes is None:
            return gate
        try:
            there = await self._target.count_rows(changes.flow, changes.schema, changes.table)
            rows = await self._target.count_below(changes, FLOOR_ROWS_LIMIT)
        except FlowError as error:  # the truncate's batch stops the flow, and says the same
            log.debug("what a truncate of flow %s takes is not known: %s", gate.flow, error)
            return gate
        return replace(gate, rows=rows, table_rows=max(rows, there))

    async def _note(self, gate: Gate, there: Gate | None) -> Gate:
        """Another process may hold a part of the same; a truncate is in one partition."""
        if there is not None and (there.state, there.kind) == (HELD, gate.kind):
            gate = replace(
                gate,
                rows=gate.rows if gate.kind == TRUNCATE else max(gate.rows, there.rows),
                since_us=there.since_us,
                up_to_us=max(gate.up_to_us, there.up_to_us),
            )
        else:
            log.warning("flow %s: HELD: %s; %s", gate.flow, text_of(gate), advice_of(gate.flow))
        await self._target.hold(gate)
        return gate
