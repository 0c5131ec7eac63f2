"""What is started when: by hand for each rule, and a simulated week in which nothing is lost or run twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.schedule.plan import (
    Due,
    JobState,
    Outcome,
    Planned,
    decide,
    missed,
    next_start,
    planned,
    stale,
    success_rate,
)
from streamer.config import parse
from tests.harness.configs import SMALL

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TICK = 5 * MINUTE


def plans(jobs: str) -> dict[str, Planned]:
    text = f"{SMALL}reconcile: {{audit: {{flow: mirror}}}}\nschedules: {{jobs: {{{jobs}}}}}\n"
    return planned(parse(text, environ={}))


def states(found: dict[str, Planned], **more: JobState) -> dict[str, JobState]:
    return {name: more.get(name, JobState(NOON)) for name in found}


def done(at: datetime, **more: Any) -> JobState:
    return JobState(NOON, at, at, at + MINUTE, at + MINUTE, Outcome.OK, **more)


def failed(at: datetime, **more: Any) -> JobState:
    return JobState(NOON, at, at, at + MINUTE, None, Outcome.FAILED, tries=1, **more)


def test_a_job_that_never_ran_is_due_at_once_by_interval_and_at_its_time_by_clock() -> None:
    found = plans("a: {exec: 'x:y', every: 1h}, b: {exec: 'x:y', at: ['12:30']}")
    known = states(found)
    assert decide(found, known, NOON).start == ["a"]
    assert next_start(found["b"], known["b"], known) == NOON + 30 * MINUTE
    assert decide(found, known, NOON + 30 * MINUTE).start == ["a", "b"]


def test_what_came_due_while_nobody_looked_is_made_good_once() -> None:
    found = plans("a: {exec: 'x:y', at: ['06:00', '18:00']}")
    late = NOON + timedelta(days=3)
    assert decide(found, states(found, a=done(NOON)), late).start == ["a"]
    assert decide(found, states(found, a=done(late)), late + MINUTE).start == []


def test_priority_then_who_waits_longest_and_no_more_than_two() -> None:
    found = plans(
        "a: {exec: 'x:y', every: 1h}, b: {exec: 'x:y', every: 2h}, c: {exec: 'x:y', every: 3h, priority: 1}"
    )
    known = states(found, a=done(NOON), b=done(NOON), c=done(NOON))
    decision = decide(found, known, NOON + timedelta(hours=9))
    assert decision.start == ["c", "a"]
    assert decision.waiting == [Due("b", NOON + timedelta(hours=2), "waits: 2 jobs run")]


def test_overlap_skips_or_queues() -> None:
    found = plans("a: {exec: 'x:y', every: 1h}, b: {exec: 'x:y', every: 1h, overlap: queue}")
    running = replace(done(NOON), running=True)
    decision = decide(found, states(found, a=running, b=replace(running)), NOON + timedelta(hours=2))
    assert decision.skip == [("a", "it still ran when it came due")]
    assert [(due.name, due.waits) for due in decision.waiting] == [("b", "it still runs")]
    assert decision.start == []


def test_what_it_comes_after_is_fresh_or_runs_first() -> None:
    found = plans("a: {exec: 'x:y', at: ['00:00'], stale_after: 1h}, b: {exec: 'x:y', every: 1d, after: [a]}")
    fresh = decide(found, states(found, a=done(NOON)), NOON + 30 * MINUTE)
    assert (fresh.start, fresh.ask) == (["b"], [])
    later = NOON + timedelta(hours=2)
    old = decide(found, states(found, a=done(NOON)), later)
    assert (old.start, old.ask) == ([], ["a"])
    assert [due.waits for due in old.waiting] == ["waits for a"]
    asked = decide(found, states(found, a=replace(done(NOON), asked=later)), later)
    assert (asked.start, asked.ask) == (["a"], [])
    busy = decide(found, states(found, a=replace(done(NOON), running=True)), later)
    assert (busy.start, busy.ask) == ([], [])


def test_what_comes_after_a_failed_one_is_skipped_when_that_is_not_tried_again() -> None:
    found = plans("a: {exec: 'x:y', at: ['00:00']}, b: {exec: 'x:y', every: 1d, after: [a]}")
    later = NOON + 2 * MINUTE
    decision = decide(found, states(found, a=failed(NOON)), later)
    assert decision.skip == [("b", "it comes after a, which failed")]
    again = plans("a: {exec: 'x:y', at: ['00:00'], retries: 1}, b: {exec: 'x:y', every: 1d, after: [a]}")
    decision = decide(again, states(again, a=failed(NOON)), later)
    assert (decision.skip, decision.start) == ([], ["a"])


def test_after_alone_is_due_when_all_of_them_are_done() -> None:
    found = plans("a: {exec: 'x:y', every: 1d}, b: {exec: 'x:y', every: 1d}, c: {exec: 'x:y', after: [a, b]}")
    one = states(found, a=done(NOON), b=JobState(NOON, running=True))
    assert decide(found, one, NOON + 5 * MINUTE).start == []
    both = states(found, a=done(NOON), b=done(NOON))
    assert decide(found, both, NOON + 5 * MINUTE).start == ["c"]
    ran = both | {"c": done(NOON + 5 * MINUTE)}
    assert decide(found, ran, NOON + 10 * MINUTE).start == []


def test_retries_wait_longer_each_time_and_end() -> None:
    found = plans("a: {exec: 'x:y', at: ['00:00'], retries: 2}")
    for tries, wait_s in ((1, 30), (2, 60)):
        state = replace(failed(NOON), tries=tries)
        ended = NOON + MINUTE
        assert decide(found, {"a": state}, ended + timedelta(seconds=wait_s - 1)).start == []
        assert decide(found, {"a": state}, ended + timedelta(seconds=wait_s)).start == ["a"]
    assert decide(found, {"a": replace(failed(NOON), tries=3)}, NOON + timedelta(hours=9)).start == []


def test_a_retry_that_runs_is_not_due_once_more() -> None:
    found = plans("a: {exec: 'x:y', at: ['00:00'], retries: 2}")
    again = replace(failed(NOON), running=True)
    assert decide(found, {"a": again}, NOON + timedelta(hours=1)).skip == []


def test_disabled_and_paused_run_only_when_asked() -> None:
    found = plans("a: {exec: 'x:y', every: 1h, enabled: false}, b: {exec: 'x:y', every: 1h}")
    known = states(found, b=JobState(NOON, paused=True))
    assert decide(found, known, NOON + timedelta(days=1)).start == []
    asked = {name: replace(state, asked=NOON) for name, state in known.items()}
    assert decide(found, asked, NOON).start == ["a", "b"]


def test_missed_is_what_has_not_begun_within_its_grace() -> None:
    found = plans(
        "a: {exec: 'x:y', at: ['12:10'], grace: 5m}, b: {exec: 'x:y', at: ['12:10'], enabled: false}"
    )
    known = states(found)
    assert missed(found, known, NOON + 15 * MINUTE) == []
    assert missed(found, known, NOON + 16 * MINUTE) == [("a", NOON + 10 * MINUTE)]
    assert missed(found, known | {"a": done(NOON + 12 * MINUTE)}, NOON + 16 * MINUTE) == []


def test_stale_is_what_was_not_done_for_so_long() -> None:
    found = plans("a: {exec: 'x:y', every: 1h, stale_after: 2h}")
    known = states(found, a=done(NOON))
    assert stale(found, known, NOON + timedelta(hours=2)) == []
    assert stale(found, known, NOON + timedelta(hours=2, minutes=2)) == ["a"]


def test_the_success_rate_counts_what_began() -> None:
    assert success_rate([]) is None
    assert success_rate([Outcome.SKIPPED]) is None
    assert (
        success_rate([Outcome.OK, Outcome.FINDING, Outcome.FAILED, Outcome.SKIPPED, Outcome.CUT_OFF]) == 0.5
    )


@settings(max_examples=12)
@given(
    st.lists(
        st.sampled_from(["every: 15m", "every: 1h", "at: ['02:30', '14:00']", "cron: '*/20 * * * *'"]),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=8),
)
def test_a_day_of_ticks(times: list[str], lengths: list[tuple[int, bool]]) -> None:
    """Runs never overlap themselves, no more than two run, and no time passes without its run or skip."""
    found = plans(", ".join(f"j{n}: {{exec: 'x:y', {each}}}" for n, each in enumerate(times)))
    known = {name: JobState(NOON) for name in found}
    ends: dict[str, tuple[datetime, bool]] = {}
    begun: dict[str, list[datetime]] = {name: [] for name in found}
    now, turn = NOON, 0
    while now < NOON + timedelta(days=1):
        for name, (end, well) in list(ends.items()):
            if end <= now:
                state = known[name]
                state.running, state.last_end = False, end
                state.outcome = Outcome.OK if well else Outcome.FAILED
                state.last_done = end if well else state.last_done
                del ends[name]
        decision = decide(found, known, now)
        for name, _ in decision.skip:
            assert known[name].running
            known[name].passed = now
        for name in decision.start:
            assert not known[name].running
            length, well = lengths[turn % len(lengths)]
            turn += 1
            known[name].running, known[name].last_start, known[name].passed = True, now, now
            ends[name] = now + length * MINUTE, well
            begun[name].append(now)
        assert sum(state.running for state in known.values()) <= 2
        now += TICK
    for name, plan in found.items():
        waits = [due for due in decide(found, known, now).waiting if due.name == name]
        moment = next_start(plan, known[name], known)
        assert moment is not None
        assert moment > now - TICK or waits or decide(found, known, now).start
        assert begun[name]
