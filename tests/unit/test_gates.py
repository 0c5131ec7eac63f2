"""What a gate holds, what passes it, and what a decision covers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from consumers.apply.assemble import Decoded, Prepared
from consumers.apply.checkpoint import Move, Place
from consumers.apply.floors import PASS_S, Extent
from consumers.apply.fold import Event
from consumers.apply.gate_texts import reason_of
from consumers.apply.gates import Gates, Rule
from consumers.targets.base import Batch, Gate
from consumers.targets.memory import MemoryStore, MemoryTarget
from consumers.testing import CLUSTER_ID, Log, LogTable
from streamer.changes.envelope import FLOOR_PREFIX, Change, MessageContent, decode_value
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Flow, parse
from streamer.config import MemoryTarget as Settings
from tests.harness.gates import BOTH, CONFIG, NOW_US, TOPIC, WINDOW_US, decision, deletes, event


class Clock:
    def __init__(self) -> None:
        self.us = NOW_US

    def __call__(self) -> int:
        return self.us


RECORD = SchemaRecord("shop", "public", "people", "d", (Column("id", "integer", -1, "number", True),))


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Between(MemoryTarget):
    """`then`: what happens right after its next look at the gates, before it does anything else."""

    then: Callable[[], Awaitable[object]] | None = None

    async def gates(self) -> list[Gate]:
        found = await super().gates()
        then, self.then = self.then, None
        if then is not None:
            await then()
        return found


async def gates_of(
    store: MemoryStore, clock: Clock, rule: Rule = BOTH, ranges: dict[int, tuple[int, int]] | None = None
) -> Gates:
    config = parse(CONFIG, Path("tailrace.yaml"), environ={})
    given = config.targets["copy"]
    assert isinstance(given, Settings)
    target = Between(given, "acme.copy", list(config.flows.values()), store=store)
    await target.open()

    async def reach(act: Callable[[], Awaitable[None]]) -> bool:
        await act()
        return True

    async def extent_of(topic: str) -> Extent:
        assert topic == TOPIC
        return Extent(CLUSTER_ID, ranges or {})

    return Gates({"both": rule}, target, reach, extent_of=extent_of, clock_us=clock)


def flow_both() -> Flow:
    return parse(CONFIG, Path("tailrace.yaml"), environ={}).flows["both"]


def prepared() -> Prepared:
    return Prepared(Batch([], [Move(Place("both", TOPIC, 0), 0, 100, None)], {"s": RECORD}, "cluster"), 0)


def let_go() -> Prepared:
    """Its places were released while it was judged."""
    return Prepared(Batch([], [], {"s": RECORD}, "cluster"), 0)


def decoded(*events: Event) -> dict[int, Decoded]:
    found = Decoded()
    found.events = list(events)
    return {0: found}


async def test_a_hold_is_noted_decided_and_passed(clock: Clock) -> None:
    """By two processes of a group, and one that starts afterwards."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    one, two = await gates_of(store, clock), await gates_of(store, clock)
    assert await one.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(0, 50))) == {0: 0}
    assert one.holds("both", TOPIC)
    assert not two.holds("both", TOPIC)
    one.count(prepared())
    one.written()
    assert await one.poll() == set()
    assert await two.poll() == {("both", TOPIC)}
    assert two.holds("both", TOPIC)
    assert [gate.rows for gate in two.held()] == [50]

    clock.us += 1
    (gate,) = await target_of(two).decide("both", "approved", "ann@host", clock.us)
    assert gate.decided_by == "ann@host"
    late = await gates_of(store, clock)
    await late.load()
    for gates in (one, two):
        assert await gates.poll() == {("both", TOPIC)}
    for gates in (one, two, late):
        assert not gates.holds("both", TOPIC)
        assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(0, 50))) == {}
        handed = prepared()
        gates.count(handed)
        assert (handed.batch.deleted, handed.letters) == ({}, [])


async def test_rows_that_the_held_batch_makes_are_of_the_table(clock: Clock) -> None:
    """The first batch of a flow that begins at the start of its topic: nothing is in the target yet."""
    gates = await gates_of(MemoryStore("acme.copy", clock_us=clock), clock)
    made = [event("c", n, n) for n in range(100)]
    assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*made, *deletes(0, 50, 100))) == {0: 100}
    (gate,) = gates.held()
    assert (gate.rows, gate.table_rows) == (50, 100)
    assert "50 of 100 rows of public.people" in reason_of([gate])


async def test_a_truncate_is_noted_though_what_came_beside_it_was_let_go(clock: Clock) -> None:
    """The keeper, which sees the hold, may release the topic before the batch is made."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    gates = await gates_of(store, clock)
    beside = Decoded()
    beside.events = [event("c", 0, 7)]
    parts = {**decoded(event("t", 0)), 1: beside}
    assert await gates.judge(flow_both(), TOPIC, RECORD, parts) == {0: 0}
    assert await gates.poll() == set()
    assert gates.noted() == [], "what came beside it may be on its way"
    gates.count(let_go())
    assert await gates.poll() == set()
    assert [gate.kind for gate in gates.noted()] == ["truncate"]


async def test_what_was_refused_is_taken_out_with_a_letter_each(clock: Clock) -> None:
    store = MemoryStore("acme.copy", clock_us=clock)
    gates = await gates_of(store, clock)
    events = [event("c", 0, 7), event("t", 1), event("c", 2, 8)]
    assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*events)) == {0: 1}
    gates.count(prepared())
    gates.written()
    await gates.poll()
    await target_of(gates).decide("both", "refused", "ann@host", clock.us)
    await gates.poll()
    parts = decoded(*events)
    assert await gates.judge(flow_both(), TOPIC, RECORD, parts) == {}
    assert [kept.offset for kept in parts[0].events] == [0, 2]
    assert parts[0].others == []
    handed = prepared()
    gates.count(handed)
    (letter,) = handed.letters
    assert (letter.place, letter.offset, letter.action) == (Place("both", TOPIC, 0), 1, "refused")
    assert "ann@host" in letter.message
    assert decode_value(letter.payload, where="", offset=0).op == "t"


def target_of(gates: Gates) -> Between:
    target = gates._target
    assert isinstance(target, Between)
    return target


@pytest.mark.parametrize("state", ["approved", "refused"])
async def test_a_decision_between_another_process_s_look_and_its_note_stands(
    clock: Clock, state: str
) -> None:
    """Both hold deletes of the topic, in partitions of their own."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    one, two = await gates_of(store, clock), await gates_of(store, clock)
    for gates in (one, two):
        assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(0, 50))) == {0: 0}
        gates.count(prepared())
        gates.written()
    await one.poll()
    clock.us += 1
    target_of(two).then = lambda: target_of(one).decide("both", state, "ann@host", clock.us)
    await two.poll()
    assert [gate.state for gate in store.gates.values()] == [state]
    for gates in (one, two):
        assert await gates.poll() == {("both", TOPIC)}
        assert not gates.holds("both", TOPIC)
        parts = decoded(*deletes(0, 50))
        assert await gates.judge(flow_both(), TOPIC, RECORD, parts) == {}
        assert len(parts[0].events) == (50 if state == "approved" else 0)


async def test_a_process_that_dies_between_its_look_and_its_note_has_let_nothing_pass(clock: Clock) -> None:
    """The next one reads the same again, from the checkpoint, and holds it."""
    store = MemoryStore("acme.copy", clock_us=clock)
    gates = await gates_of(store, clock)
    assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(event("t", 5))) == {0: 5}
    gates.count(prepared())
    gates.written()

    async def die() -> None:
        raise asyncio.CancelledError

    target_of(gates).then = die
    with pytest.raises(asyncio.CancelledError):
        await gates.poll()
    assert store.gates == {}
    late = await gates_of(store, clock)
    await late.load()
    assert await late.judge(flow_both(), TOPIC, RECORD, decoded(event("t", 5))) == {0: 5}
    late.count(prepared())
    late.written()
    await late.poll()
    assert [(gate.kind, gate.state) for gate in store.gates.values()] == [("truncate", "held")]


async def test_an_old_decision_of_a_replaced_store_does_not_pass_what_was_refused_since(clock: Clock) -> None:
    """One process remembers an approval; another one, which does not, has held a truncate meanwhile."""
    store = MemoryStore("acme.copy", clock_us=clock)
    one, two = await gates_of(store, clock), await gates_of(store, clock)
    store.gates["both", TOPIC] = replace(decision("approved", "truncate"), flow="both")
    await one.poll()
    store.gates.clear()
    assert await two.judge(flow_both(), TOPIC, RECORD, decoded(event("t", 5))) == {0: 5}
    two.count(prepared())
    two.written()

    async def held_and_refused() -> None:
        await two.poll()
        await target_of(two).decide("both", "refused", "ann@host", clock.us)

    target_of(one).then = held_and_refused
    await one.poll()
    await two.poll()
    parts = decoded(event("t", 5))
    assert await two.judge(flow_both(), TOPIC, RECORD, parts) == {}
    assert parts[0].events == []


async def test_what_is_older_than_a_decision_is_of_is_held_and_shown(clock: Clock) -> None:
    """Of a partition that is far behind the one that was decided of."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    gates = await gates_of(store, clock)
    store.gates["both", TOPIC] = replace(decision("approved"), flow="both")
    await gates.poll()
    old = [event("d", n, n, NOW_US - WINDOW_US - 1) for n in range(50)]
    assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*old)) == {0: 0}
    gates.count(prepared())
    gates.written()
    for _ in range(2):
        await gates.poll()
        assert gates.holds("both", TOPIC)
    assert [gate.state for gate in await target_of(gates).gates()] == ["held"]


async def test_batches_on_their_way_count(clock: Clock) -> None:
    """Each is below the share; together they are not, written or not."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    gates = await gates_of(store, clock)
    assert (
        await gates.judge(flow_both(), TOPIC, RECORD, decoded(*[event("c", n, n) for n in range(300)])) == {}
    )
    gates.count(prepared())
    ends = []
    for step in range(3):
        ends.append(
            await gates.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(step * 12, 12, 300 + step * 12)))
        )
        handed = prepared()
        gates.count(handed)
        if not ends[-1]:
            assert handed.batch.deleted == {Place("both", TOPIC, 0): 12}
        if step == 0:
            gates.written()
            gates.written()
    assert ends == [{}, {}, {0: 324}]


async def test_a_batch_that_is_given_up_counts_no_longer(clock: Clock) -> None:
    """Kafka went away while it was handed over; what is read again is judged by what the target has."""
    store = MemoryStore("acme.copy", clock_us=clock)
    store.make_table("b", "people", ["id"])
    gates = await gates_of(store, clock)
    assert (
        await gates.judge(flow_both(), TOPIC, RECORD, decoded(*[event("c", n, n) for n in range(300)])) == {}
    )
    for _ in range(4):
        gates.count(prepared())
        gates.written()
        clock.us += 2_000_000
        assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(0, 9, 300))) == {}


async def test_a_batch_that_is_assembled_again_counts_once(clock: Clock) -> None:
    store = MemoryStore("acme.copy", clock_us=clock)
    gates = await gates_of(store, clock)
    for _ in range(2):
        assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(*deletes(0, 20))) == {0: 0}
    assert await gates.judge(flow_both(), TOPIC, RECORD, decoded(event("c", 0, 1))) == {}
    assert not gates.holds("both", TOPIC)


async def test_a_decision_outlives_a_store_that_was_emptied(clock: Clock) -> None:
    store = MemoryStore("acme.copy", clock_us=clock)
    gates = await gates_of(store, clock)
    store.gates["both", TOPIC] = replace(decision("refused"), flow="both")
    await gates.poll()
    store.gates.clear()
    await gates.poll()
    assert store.gates["both", TOPIC].state == "refused"


def floor_of(epoch: int, offset: int) -> Event:
    message = MessageContent(FLOOR_PREFIX, b"")
    change = Change("m", None, None, epoch, 0, 0, RECORD.id, NOW_US, NOW_US, message)
    return Event(None, change, offset, False)


FLOORS = Rule(truncates=False, share=None, floors=0.1)
PLACES = [Place("both", TOPIC, partition) for partition in range(2)]


async def reset_of(store: MemoryStore, clock: Clock, copied: int) -> tuple[Gates, Log, LogTable]:
    """A hundred rows, of which the copy of the second epoch has so many, all of it applied in partition 0;
    its floor was met there. Partition 1 is read up to nothing yet."""
    log = Log("shop", partitions=1)
    table = log.table("people", {"id": "integer"})
    for number in range(100):
        table.create({"id": number})
    for number in range(copied):
        table.read({"id": number}, epoch=2)
    gates = await gates_of(store, clock, FLOORS, ranges={0: (0, 1000), 1: (0, 7), 2: (5, 5)})
    target = target_of(gates)
    await log.apply(target, [flow_both()])
    await target.checkpoints(PLACES)
    parts = decoded(floor_of(2, 100 + copied), event("c", 101 + copied, 500))
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {0: 100 + copied}
    assert (gates.holds("both", TOPIC), gates.waits(PLACES[0]), gates.waits(PLACES[1])) == (
        False,
        True,
        False,
    )
    return gates, log, table


async def catch_up(gates: Gates) -> None:
    """Partition 1, up to where it was when the floor was met."""
    move = Move(PLACES[1], 0, 7, None)
    await target_of(gates).apply(Batch([], [move], {}, CLUSTER_ID))


async def test_a_reset_that_lacks_too_much_is_held(clock: Clock) -> None:
    """Once the copy is there in all partitions, and not before: until then it is not known."""
    store = MemoryStore("acme.copy", clock_us=clock)
    gates, _, table = await reset_of(store, clock, 60)
    assert await gates.poll() == set()
    assert gates.held() == []
    await catch_up(gates)
    assert await gates.poll() == {("both", TOPIC)}
    assert gates.holds("both", TOPIC)
    (gate,) = gates.held()
    assert (gate.kind, gate.rows, gate.table_rows) == ("floor", 40, 100)
    late = await gates_of(store, clock, FLOORS)
    await late.load()
    assert late.holds("both", TOPIC)
    clock.us += 1
    await target_of(gates).decide("both", "approved", "ann@host", clock.us)
    assert await gates.poll() == {("both", TOPIC)}
    parts = decoded(floor_of(2, 160))
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {}
    assert len(parts[0].events) == 1
    clock.us += round(2 * WINDOW_US)
    parts = {0: Decoded()}
    later = floor_of(3, 161)
    parts[0].events = [later._replace(change=later.change._replace(capture_us=clock.us))]
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {0: 161}, "another reset"


async def test_a_reset_that_is_refused_leaves_its_record(clock: Clock) -> None:
    gates, _, table = await reset_of(MemoryStore("acme.copy", clock_us=clock), clock, 0)
    await catch_up(gates)
    await gates.poll()
    await target_of(gates).decide("both", "refused", "ann@host", clock.us)
    await gates.poll()
    parts = decoded(floor_of(2, 100))
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {}
    assert parts[0].events == []
    handed = prepared()
    handed.batch.records[table.record.id] = table.record
    gates.count(handed)
    (letter,) = handed.letters
    assert (letter.code, letter.action) == ("floor", "refused")
    assert decode_value(letter.payload, where="", offset=0).is_floor


async def test_a_reset_that_lacks_little_goes_on_by_itself(clock: Clock) -> None:
    """For as long as the count is worth something."""
    gates, _, table = await reset_of(MemoryStore("acme.copy", clock_us=clock), clock, 91)
    await catch_up(gates)
    assert await gates.poll() == {("both", TOPIC)}
    assert not gates.waits(PLACES[0])
    parts = decoded(floor_of(2, 191))
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {}
    assert gates.held() == []
    clock.us += round(1.1e6 * PASS_S)
    assert await gates.judge(flow_both(), TOPIC, table.record, parts) == {0: 191}
    await target_of(gates).apply(Batch([], [Move(PLACES[0], 191, 192, None)], {}, CLUSTER_ID))
    assert await gates.poll() == set()
    assert not gates.waits(PLACES[0]), "it was applied"


async def test_checkpoints_of_a_kafka_that_was_replaced_say_nothing_of_the_copy(clock: Clock) -> None:
    """They are beyond the log's end, or name another cluster, until a record of this log moves them."""
    store = MemoryStore("acme.copy", clock_us=clock)
    log = Log("shop", partitions=1)
    table = log.table("people", {"id": "integer"})
    for number in range(100):
        table.create({"id": number})
    gates = await gates_of(store, clock, FLOORS, ranges={0: (0, 1), 1: (0, 90)})
    target = target_of(gates)
    await log.apply(target, [flow_both()])
    await target.checkpoints(PLACES)
    await target.apply(Batch([], [Move(PLACES[1], 0, 95, None)], {}, "the old one"))
    assert await gates.judge(flow_both(), TOPIC, table.record, decoded(floor_of(2, 0))) == {0: 0}
    assert await gates.poll() == set(), "the copy may be in partition 1"
    assert gates.waits(PLACES[0])
    await target.apply(Batch([], [Move(PLACES[1], 95, 90, None)], {}, CLUSTER_ID))
    assert await gates.poll() == {("both", TOPIC)}
    (gate,) = gates.held()
    assert gate.rows == 100


async def test_a_truncate_behind_a_floor_tells_what_the_floor_leaves(clock: Clock) -> None:
    """The floor is approved and goes in the batch that ends at the truncate: until that is written, what the
    truncate would take is not known, and nobody is asked."""
    both = Rule(truncates=True, share=None, floors=0.1)
    store = MemoryStore("acme.copy", clock_us=clock)
    log = Log("shop", partitions=1)
    table = log.table("people", {"id": "integer"})
    for number in range(100):
        table.create({"id": number})
    for number in range(60):
        table.read({"id": number}, epoch=2)
    gates = await gates_of(store, clock, both, ranges={0: (0, 160)})
    target = target_of(gates)
    await log.apply(target, [flow_both()])
    truncate = event("t", 161)
    change = truncate.change._replace(epoch=2, commit_lsn=log.commit_lsn + 8, capture_us=clock.us)
    truncate = truncate._replace(change=change)
    events = floor_of(2, 160), truncate
    assert await gates.judge(flow_both(), TOPIC, table.record, decoded(*events)) == {0: 160}
    gates.count(prepared())
    gates.written()
    await gates.poll()
    await target.decide("both", "approved", "ann@host", clock.us + 1)
    await gates.poll()
    assert await gates.judge(flow_both(), TOPIC, table.record, decoded(*events)) == {0: 161}
    gates.count(prepared())
    await gates.poll()
    assert [gate.state for gate in await target.gates()] == ["approved"], "of the floor still"
    assert gates.holds("both", TOPIC)
    table.floor(2)
    await log.apply(target, [flow_both()])
    gates.written()
    await gates.poll()
    (gate,) = await target.gates()
    assert (gate.kind, gate.state, gate.rows, gate.table_rows) == ("truncate", "held", 60, 60)
