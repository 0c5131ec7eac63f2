"""What a rule lets pass, holds and drops of a batch. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from consumers.apply.gate_texts import FLOOR_ROWS_LIMIT, reason_of
from consumers.apply.gates import Part, Rule, rules_of
from consumers.targets.base import Gate
from streamer.config import parse
from tests.harness.gates import CONFIG, NOW_US, WINDOW_US, decision, deletes, event, part, verdict_of


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
