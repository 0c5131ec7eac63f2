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
from consumers.apply.gate_texts import FLOOR_ROWS_LIMIT, reason_of
from consumers.apply.gates import WINDOW_S, Gates, Numbers, Part, Rule, Verdict, judge, rules_of
from consumers.targets.base import Batch, Gate
from consumers.targets.memory import MemoryStore, MemoryTarget
from consumers.testing import CLUSTER_ID, Log, LogTable
from streamer.changes.envelope import FLOOR_PREFIX, Change, MessageContent, decode_value
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Flow, parse
from streamer.config import MemoryTarget as Settings

NOW_US = 1_700_000_000_000_000
WINDOW_US = round(WINDOW_S * 1e6)
TOPIC = "shop.public.people"
BOTH = Rule(truncates=True, share=0.1)


def event(op: str, offset: int, key: int | None = None, captured_us: int = NOW_US) -> Event:
    row = None if op == "t" else {"id": key}
    before, after = (row, None) if op == "d" else (None, row)
    change = Change(op, before, after, 1, offset, 0, "s", 0, captured_us, None)
    return Event(None if key is None else b"%d" % key, change, offset, False)


def deletes(first: int, count: int, start: int = 0) -> list[Event]:
    return [event("d", start + n, first + n) for n in range(count)]


def part(*events: Event, sweeps: dict[int, int] | None = None) -> Part:
    return Part(list(events), sweeps or {})


def decision(state: str, kind: str = "deletes", rows: int = 0, up_to_us: int = NOW_US) -> Gate:
    return Gate("mirror", TOPIC, kind, state, rows, 100, NOW_US, up_to_us, "ann@host")


def verdict_of(
    *parts: Part, rule: Rule = BOTH, gate: Gate | None = None, rows: int = 100, recent: int = 0
) -> Verdict:
    return judge(rule, gate, dict(enumerate(parts)), Numbers(rows, recent))


def test_a_truncate_is_held_at_its_offset() -> None:
    verdict = verdict_of(part(event("c", 0, 1), event("t", 1), event("c", 2, 2)), part(event("c", 0, 3)))
    assert (verdict.ends, verdict.kind, verdict.rows) == ({0: 1}, "truncate", 100)
    assert verdict_of(part(event("t", 0)), rule=Rule(truncates=False, share=0.1)).ends == {}


def test_deletes_above_the_share_are_held_from_the_batchs_first_on() -> None:
    """In every partition; what is exactly the share passes, and counts."""
    passing = verdict_of(part(*deletes(0, 6)), part(*deletes(50, 4)))
    assert (passing.ends, passing.passed) == ({}, {0: 6, 1: 4})
    held = verdict_of(part(event("c", 0, 9), *deletes(0, 7, 1)), part(*deletes(50, 4, 20)))
    assert (held.ends, held.kind, held.rows, held.passed) == ({0: 1, 1: 20}, "deletes", 11, {})


def test_what_was_deleted_before_counts() -> None:
    """90 rows are left of 100: ten were deleted within the window, one more is too many."""
    assert verdict_of(part(*deletes(0, 1)), rows=91, recent=9).ends == {}
    assert verdict_of(part(*deletes(0, 1)), rows=90, recent=10).ends == {0: 0}


def test_a_few_deletes_are_never_held() -> None:
    assert verdict_of(part(*deletes(0, 9)), rows=9).ends == {}
    assert verdict_of(part(*deletes(0, 10)), rows=10).ends == {0: 0}


def test_rows_that_the_batch_makes_belong_to_the_table() -> None:
    made = [event("c", n, n) for n in range(200)]
    assert verdict_of(part(*made, *deletes(0, 20, 200)), rows=0).ends == {}
    assert verdict_of(part(*made, *deletes(0, 21, 200)), rows=0).ends == {0: 200}


def test_a_key_that_is_made_again_is_not_gone() -> None:
    again = [event("c", 100 + n, n) for n in range(60)]
    verdict = verdict_of(part(*deletes(0, 60), *again))
    assert (verdict.ends, verdict.passed) == ({}, {})


def test_the_first_delete_of_a_sweep_tells_how_many_follow() -> None:
    first = event("d", 5, 1)
    verdict = verdict_of(part(event("c", 4, 2), first, sweeps={5: 100}))
    assert (verdict.ends, verdict.kind, verdict.rows) == ({0: 5}, "deletes", 100)
    assert verdict_of(part(first, sweeps={5: 10})).ends == {}


def test_deletes_without_a_key_count_each() -> None:
    assert verdict_of(part(*[event("d", n) for n in range(11)])).ends == {0: 0}
    assert verdict_of(part(*[event("d", n) for n in range(10)])).passed == {0: 10}


def test_approved_deletes_pass_and_do_not_count() -> None:
    verdict = verdict_of(part(*deletes(0, 50), event("d", 60, 70, NOW_US + 1)), gate=decision("approved"))
    assert (verdict.ends, verdict.dropped, verdict.passed) == ({}, {}, {0: 1})
    later = [event("d", 60 + n, n, NOW_US + 1) for n in range(11)]
    assert verdict_of(part(*deletes(0, 50), *later), gate=decision("approved")).ends == {0: 60}


def test_refused_deletes_are_dropped() -> None:
    verdict = verdict_of(part(event("c", 0, 9), *deletes(0, 50, 1)), gate=decision("refused"))
    assert (verdict.ends, verdict.passed) == ({}, {})
    assert [dropped.offset for dropped in verdict.dropped[0]] == list(range(1, 51))


def test_a_decision_is_of_its_kind() -> None:
    """A refused truncate does not drop the deletes that came after it, nor an approved one pass them."""
    for state in ("approved", "refused"):
        gate = decision(state, "truncate")
        verdict = verdict_of(part(event("t", 0), *deletes(0, 50, 1)), gate=gate)
        assert (verdict.ends, verdict.kind) == ({0: 1}, "deletes")
        assert [dropped.offset for dropped in verdict.dropped.get(0, [])] == (
            [0] if state == "refused" else []
        )
    assert verdict_of(part(event("t", 0)), gate=decision("approved", "deletes")).ends == {0: 0}


def test_a_decision_is_not_of_what_a_replay_brings() -> None:
    old = [event("d", n, n, NOW_US - WINDOW_US - 1) for n in range(5)]
    assert verdict_of(part(*old), gate=decision("refused")).dropped == {}
    near = [event("d", n, n, NOW_US - WINDOW_US) for n in range(5)]
    assert len(verdict_of(part(*near), gate=decision("refused")).dropped[0]) == 5


def test_a_decision_covers_the_rest_of_its_sweep() -> None:
    later = [event("d", n, n, NOW_US + 5_000_000) for n in range(50)]
    sweeps = dict.fromkeys(range(50), 80)
    gate = decision("approved", rows=80)
    assert verdict_of(part(*later, sweeps=sweeps), gate=gate).ends == {}
    assert verdict_of(part(*later, sweeps=dict.fromkeys(range(50), 81)), gate=gate).ends == {0: 0}
    much_later = [event("d", n, n, NOW_US + WINDOW_US + 1) for n in range(50)]
    assert verdict_of(part(*much_later, sweeps=sweeps), gate=gate).ends == {0: 0}


def test_a_held_gate_decides_nothing() -> None:
    assert verdict_of(part(event("t", 0)), gate=decision("held", "truncate")).ends == {0: 0}


def test_what_is_behind_a_held_truncate_is_not_dropped_or_counted() -> None:
    events = [event("d", 0, 1), event("t", 1), event("d", 2, 2)]
    verdict = verdict_of(part(*events))
    assert (verdict.ends, verdict.passed) == ({0: 1}, {0: 1})


CONFIG = """
name: acme
sources:
  shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}
  game: {kind: redis, url: "redis://h", entities: {scores: {pattern: "s:{id}", type: string}}}
targets: {copy: {kind: memory}}
flows:
  plain: {from: "shop.public.*", to: copy.a}
  both: {from: "shop.public.*", to: copy.b, truncate: hold, hold_deletes_above: 5%}
  soft: {from: "shop.public.*", to: copy.c, delete: ignore, hold_deletes_above: 5%}
  redis: {from: game.scores, to: copy.d}
  off: {from: game.scores, to: copy.e, hold_deletes_above: ""}
  truncates: {from: "shop.public.*", to: copy.f, truncate: hold}
  unversioned: {from: "shop.public.*", to: copy.g, truncate: hold, hold_deletes_above: 5%, version: none}
"""


def test_which_flows_hold_what() -> None:
    config = parse(CONFIG, Path("tailrace.yaml"), environ={})
    rules = rules_of(config, config.flows.values())
    assert rules == {
        "both": Rule(True, 0.05, 0.05),
        "redis": Rule(False, 0.1, 0.1),
        "truncates": Rule(True, None, 0.1),
        "unversioned": Rule(True, 0.05),
    }


def test_the_words() -> None:
    gate = Gate("customers", "shop.public.customers", "deletes", "held", 100_000, 100_000, 1)
    expected = "100,000 of 100,000 rows of public.customers would be deleted;"
    advice = f"{expected} `tailrace approve customers` or `tailrace refuse customers`"
    assert reason_of([gate]) == f"{advice} (usual here? raise the flow's `hold_deletes_above`)"
    truncate = reason_of([replace(gate, kind="truncate")])
    assert truncate.endswith("`tailrace refuse customers`"), "no limit has to do with it"
    floor = reason_of([replace(gate, kind="floor", rows=12_000)])
    lacks = (
        "the new copy of the source lacks 12,000 of 100,000 rows of public.customers, which would be deleted;"
    )
    assert floor.startswith(lacks)
    many = replace(gate, kind="floor", rows=FLOOR_ROWS_LIMIT, table_rows=5_000_000)
    assert "lacks at least 1,000,000 of 5,000,000 rows" in reason_of([many])


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


def test_deletes_that_were_let_through_once_do_not_count() -> None:
    """A store that was emptied gets them again; the first that is new counts, and so do truncates."""
    again = Part([event("c", 0, 200), *deletes(0, 40, 1), *deletes(100, 5, 50)], {}, passed=50)
    verdict = verdict_of(again)
    assert (verdict.ends, verdict.passed, verdict.made) == ({}, {0: 5}, 1 - 40)
    more = Part([*deletes(0, 40), *deletes(100, 11, 50), event("t", 70)], {}, passed=50)
    verdict = verdict_of(more)
    assert (verdict.ends, verdict.kind) == ({0: 50}, "truncate")
    refused = Part(deletes(0, 40), {}, passed=50)
    assert len(verdict_of(refused, gate=decision("refused")).dropped[0]) == 40, "by a person, for good"


def test_a_replay_makes_and_deletes_no_row_and_passes_over_its_truncates() -> None:
    """The store has it all still. What comes behind it is judged as ever, by the rows that are there."""
    replayed = [*[event("c", n, n) for n in range(40)], *deletes(0, 40, 40), event("t", 90)]
    verdict = verdict_of(Part(replayed, {}, passed=100, stays=True))
    assert (verdict.ends, verdict.passed, verdict.made, verdict.known) == ({}, {}, 0, {0: {90}})
    more = Part([*replayed, *deletes(200, 11, 100)], {}, passed=100, stays=True)
    assert verdict_of(more).ends == {0: 100}
    truncate = Part([*replayed, event("t", 100)], {}, passed=100, stays=True)
    assert (verdict_of(truncate).ends, verdict_of(truncate).kind) == ({0: 100}, "truncate")


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
