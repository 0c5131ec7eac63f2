"""What becomes an event: each alarm from real views, for how long it must be wrong, and when it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from consumers import views
from consumers.control.database import Database
from consumers.control.feed import Wrong
from consumers.dashboard.watch import Watch
from consumers.heartbeats import Heartbeats
from consumers.schedule import alarms, watchdog
from consumers.schedule.plan import JobState, Outcome, planned
from consumers.schedule.view import job_views
from consumers.schedule.watchdog import (
    CLEAR_LIMIT_S,
    CLEAR_S,
    HOLD_S,
    KAFKA_S,
    START_S,
    STILL_S,
    Holds,
    Watchdog,
)
from consumers.views.flows import STALLED_S
from streamer.config import Config, parse
from streamer.status import SILENT_AFTER_S, StatusRecord

S = 1_000_000
NOW_US = 1_800_000_000 * S
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
URL = "postgresql://u:p@h/d"
CONFIG = f"""
name: acme
sources:
  shop: {{kind: postgres, url: {URL}, tables: {{"public.*": {{}}}}, slot: {{wal_warn: 1kB, wal_stop: 1MB}}}}
targets: {{copy: {{kind: postgres, url: {URL}}}}}
flows: {{mirror: {{from: "shop.public.*", to: copy}}}}
"""
JOBS = """
schedules:
  jobs:
    audit: {exec: "a:b", at: ["06:00"], stale_after: 1d, retries: 1}
    tidy: {exec: "a:b", every: 1h}
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


def record(part: str, **changes: Any) -> StatusRecord:
    kind, name = part.split(":")
    known = StatusRecord(
        part, kind, name, "host-1", 1, "host", NOW_US - 100 * S, NOW_US, "streaming", seen_us=NOW_US
    )
    return replace(known, **changes)


def capture(**changes: Any) -> StatusRecord:
    detail = {"slot": {"wal_bytes": changes.pop("wal_bytes", 0)}, "tables": {}}
    return record("capture:shop", detail=detail, **changes)


def apply(flow: dict[str, Any] | None = None, **changes: Any) -> StatusRecord:
    place = {"topic": "shop.public.orders", "partition": 0, "offset": 6, "end": 6, "lag_records": 0}
    known = {
        "applied": 6,
        "parked": 0,
        "lag_records": 0,
        "lag_s": 0.0,
        "rate": 0.0,
        "state": "idle",
        "reason": "",
    }
    its = {**known, "partitions": [place], **(flow or {})}
    return record("apply:copy", detail={"flows": {"mirror": its}}, **changes)


def status(config: Config, *records: StatusRecord, proofs: Any = None) -> views.Status:
    return views.build(config, records, NOW_US, proofs)


def with_parked(keys: int) -> StatusRecord:
    """As apply says it: in its figures, and as a finding."""
    its = apply({"parked": keys})
    return replace(
        its, detail={**its.detail, "set_aside": {"mirror": f"flow mirror: {keys} keys are parked"}}
    )


def test_parked_keys_are_no_drift(config: Config) -> None:
    """Their rows are in a topic, and the rest goes on."""
    assert [*looked(config, capture(), with_parked(3))] == [("dead_letter", "flow mirror")]
    found = status(config, capture(), with_parked(3))
    assert [(f.rank, f.counts) for f in found.findings] == [(views.Grade.SET_ASIDE, True)]
    assert found.exit_code == 1


def looked(
    config: Config, *records: StatusRecord, young: bool = False, proofs: Any = None
) -> dict[tuple[str, str], str]:
    found = alarms.of_status(config, status(config, *records, proofs=proofs), young=young)
    return {(wrong.rule, wrong.subject): wrong.text for wrong in found}


SILENT = {"seen_us": NOW_US - 20 * S, "at_us": NOW_US - 20 * S}


def test_a_job_is_told_by_its_own_alarm_alone(config: Config) -> None:
    """A status tells of it, too: an alarm of that would be a second one, by another name."""
    failed = {"name": "audit", "state": "FAILED", "last": None, "stale": False}
    serve = record("serve:acme", detail={"elected": True, "enabled": True, "jobs": [failed]})
    seen = status(config, capture(), apply(), serve)
    assert [finding.subject for finding in seen.findings] == ["job audit"]
    assert alarms.of_status(config, seen, young=False) == []


def test_nothing_is_wrong_with_what_runs(config: Config) -> None:
    assert looked(config, capture(), apply()) == {}


@pytest.mark.parametrize(
    ("records", "key", "words"),
    [
        ([capture(wal_bytes=2_000), apply()], ("slot_at_risk", "source shop"), "wal_warn is"),
        ([capture(), apply({"parked": 3})], ("dead_letter", "flow mirror"), "3 keys are parked"),
        ([capture(), apply({"lag_s": 31.0, "lag_records": 4})], ("stalled", "flow mirror"), "nothing moves"),
        (
            [capture(), apply({"state": "held", "reason": "a truncate"})],
            ("held", "flow mirror"),
            "a truncate",
        ),
        ([capture(state="held", reason="a wipe"), apply()], ("held", "capture:shop"), "a wipe"),
        ([capture(), apply({"state": "rewound", "reason": "back"})], ("stalled", "flow mirror"), "REWOUND"),
        ([capture(), apply(**SILENT)], ("stalled", "apply:copy"), "silent since 20s"),
        ([capture(state="error", reason="no slot"), apply()], ("stalled", "capture:shop"), "no slot"),
        (
            [capture(), apply(), record("run:acme", **SILENT)],
            ("stalled", "run:acme host-1"),
            "silent since 20s",
        ),
        (
            [capture(), apply(), apply(instance="other-1", host="other", **SILENT)],
            ("stalled", "apply:copy other-1"),
            "another does its work",
        ),
    ],
)
def test_each_trouble_is_one_alarm(
    config: Config, records: list[StatusRecord], key: tuple[str, str], words: str
) -> None:
    found = looked(config, *records)
    assert list(found) == [key]
    assert words in found[key]


def test_a_slot_beyond_wal_stop_is_told_anew(config: Config) -> None:
    found = looked(config, capture(wal_bytes=2_000_000), apply())
    assert list(found) == [("slot_at_risk", "source shop"), ("slot_at_risk", "source shop, wal_stop")]


def test_drift_is_of_the_last_proof(config: Config) -> None:
    proof = {"run": "r1", "verdict": "drift", "drift": 0.1, "rows": 9, "began_us": 1, "ended_us": NOW_US - S}
    assert list(looked(config, capture(), apply(), proofs={"mirror": proof})) == [("drift", "flow mirror")]
    assert looked(config, capture(), apply(), proofs={"mirror": {**proof, "verdict": "equal"}}) == {}


def test_what_has_not_spoken_yet_is_no_alarm_while_it_starts(config: Config) -> None:
    assert looked(config, young=True) == {}
    assert looked(config, capture(), apply(**SILENT), young=True) == {}
    assert set(looked(config)) == {("stalled", "apply:copy"), ("stalled", "capture:shop")}
    stopped = apply({"state": "error", "reason": "no column"})
    assert list(looked(config, capture(), stopped, young=True)) == [("stalled", "flow mirror")]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "has not run yet"),
        ([record("serve:acme", state="running", detail={"elected": True}, **SILENT)], "silent since 20s"),
        ([record("serve:acme", state="standby", detail={"elected": False})], "lives, and does not run them"),
        ([record("serve:acme", state="waiting", reason="no database")], "no database"),
        ([record("serve:acme", state="running", detail={"elected": True})], ""),
    ],
)
def test_a_scheduler_must_be_elected_and_live(records: list[StatusRecord], words: str) -> None:
    found = alarms.of_scheduler(records, "acme", NOW_US)
    assert [(wrong.rule, wrong.subject) for wrong in found] == (
        [("missed_job", "scheduler")] if words else []
    )
    assert all(words in wrong.text for wrong in found)


def test_jobs_that_are_missed_failed_or_stale() -> None:
    """An alarm, and a finding of the status, which has them from the heartbeat."""
    config = parse(CONFIG + JOBS, Path("tailrace.yaml"), environ={})
    plans = planned(config)
    hour = timedelta(hours=1)
    fine = JobState(NOW - 9 * hour, passed=NOW - hour, last_done=NOW - hour, outcome=Outcome.OK)

    def found(**states: JobState) -> list[tuple[str, str]]:
        wrong = alarms.of_jobs(plans, states, NOW)
        known = {name: states.get(name) or JobState(NOW) for name in plans}
        jobs = job_views(plans, known, {}, NOW, enabled=True)
        serve = record("serve:acme", detail={"elected": True, "enabled": True, "jobs": jobs})
        seen = status(config, capture(), apply(), serve)
        assert [f.subject for f in seen.findings if f.counts] == [each.subject for each in wrong]
        return [(each.rule, each.subject) for each in wrong]

    assert found(audit=fine, tidy=replace_state(fine, passed=NOW)) == []
    assert found() == []
    late = replace_state(fine, passed=NOW - 2 * hour)
    assert found(audit=fine, tidy=late) == [("missed_job", "job tidy")]
    failed = replace_state(fine, outcome=Outcome.FAILED, last_end=NOW, tries=1)
    assert found(audit=failed, tidy=replace_state(fine, passed=NOW)) == [], "it is tried again"
    again = replace_state(failed, tries=2)
    assert found(audit=again, tidy=replace_state(fine, passed=NOW)) == [("missed_job", "job audit")]
    old = replace_state(fine, last_done=NOW - 25 * hour)
    assert found(audit=old, tidy=replace_state(fine, passed=NOW)) == [("stale", "job audit")]


def replace_state(state: JobState, **changes: Any) -> JobState:
    return replace(state, **changes)


PARKED = Wrong("dead_letter", "flow mirror", "3 keys are parked")


def test_a_state_that_flaps_is_one_event_and_stays_longer_each_time() -> None:
    holds = Holds()
    opened, was_open, at_s, lasted = 0, False, 0.0, []
    while at_s < 7_200.0:
        wrong = [PARKED] if int(at_s) % 30 < 10 else []  # 10 s wrong, 20 s right
        is_open = bool(holds.look(wrong, at_s))
        opened += is_open and not was_open
        lasted += [at_s] if was_open and not is_open else []
        was_open = is_open
        at_s += 1.0
    assert opened == 2, "once it was over after 15 s; then 20 s of peace are too few"
    assert len(lasted) == 1


def test_it_must_be_wrong_and_right_for_a_while() -> None:
    holds, hold_s = Holds(), HOLD_S["dead_letter"]
    assert holds.look([PARKED], 0.0) == []
    assert holds.look([], 1.0) == []
    assert holds.look([PARKED], 2.0) == []
    assert holds.look([PARKED], 1.0 + hold_s) == []
    assert holds.look([PARKED], 2.0 + hold_s) == [PARKED]
    assert holds.look([], 20.0) == [PARKED]
    assert holds.look([], 19.0 + CLEAR_S) == [PARKED]
    assert holds.look([], 20.0 + CLEAR_S) == []
    at_s, clear_s = 40.0, CLEAR_S
    while clear_s < CLEAR_LIMIT_S:
        clear_s = min(CLEAR_LIMIT_S, clear_s * 2)
        holds.look([PARKED], at_s)
        assert holds.look([PARKED], at_s + hold_s) == [PARKED]
        holds.look([], at_s + hold_s + 1)
        assert holds.look([], at_s + hold_s + clear_s) == [PARKED]
        assert holds.look([], at_s + hold_s + clear_s + 1) == []
        at_s += 2 * clear_s


def test_what_another_watcher_has_told_stays_until_it_is_right_for_a_while() -> None:
    holds = Holds()
    holds.adopt([PARKED], 0.0)
    assert holds.look([], 1.0) == [PARKED]
    assert holds.look([], 1.0 + CLEAR_S) == []


def test_a_text_that_counts_seconds_is_not_written_at_each_look() -> None:
    holds = Holds()
    texts = [
        holds.look([Wrong("drift", "flow mirror", f"{at_s} s ago")], float(at_s))[0].text
        for at_s in range(61)
    ]
    assert len(set(texts)) == 3


def test_a_flow_that_stands_while_its_topic_grows(config: Config) -> None:
    """Whatever it says of itself: its lag in seconds is not known here."""
    dog = Watchdog(config)

    def look(at_s: float, offset: int, end: int) -> list[str]:
        place = {"topic": "t", "partition": 0, "offset": offset, "end": end, "lag_records": end - offset}
        flow = {"lag_s": None, "lag_records": end - offset, "partitions": [place], "state": "streaming"}
        seen = status(config, capture(), apply(flow))
        assert seen.flows[0]["state"] == "OK"
        return [wrong.text for wrong in dog.look(seen, [], at_s)]

    assert look(0.0, 6, 10) == []
    assert look(START_S, 7, 20) == []
    for step in range(int(STILL_S + HOLD_S["stalled"])):
        assert look(START_S + step, 7, 20 + step) == []
    (text,) = look(START_S + STILL_S + HOLD_S["stalled"], 7, 90)
    assert "has applied nothing for 40 s, and 70 records have come" in text
    look(100.0, 8, 90)
    assert look(100.0 + CLEAR_S, 9, 90) == []


def test_all_limits_together_are_under_a_minute() -> None:
    look_s, takes_over_s = 5.0, 10.0
    assert SILENT_AFTER_S + look_s + takes_over_s + watchdog.SCHEDULER_HOLD_S < 60.0
    assert max(STILL_S, STALLED_S) + HOLD_S["stalled"] + look_s + takes_over_s < 60.0
    assert START_S + max(HOLD_S.values()) + look_s + takes_over_s < 60.0


def test_what_is_not_known_is_not_over(config: Config) -> None:
    """A slot fills while its capture is down, and keys stay parked while nobody applies."""
    dog = Watchdog(config)

    def look(at_s: float, *records: StatusRecord) -> set[tuple[str, str]]:
        found = dog.look(status(config, *records), [], at_s)
        return {(wrong.rule, wrong.subject) for wrong in found}

    both = {("slot_at_risk", "source shop"), ("dead_letter", "flow mirror")}
    look(0.0, capture(wal_bytes=2_000), apply({"parked": 3}))
    assert look(START_S, capture(wal_bytes=2_000), apply({"parked": 3})) == both
    look(START_S + 1, capture(**SILENT), apply(**SILENT))
    down = look(1_000.0, capture(**SILENT), apply(**SILENT))
    assert down == both | {("stalled", "apply:copy"), ("stalled", "capture:shop")}
    look(1_001.0, capture(), apply())
    assert look(1_001.0 + CLEAR_S, capture(), apply()) == set()


def test_a_restart_ends_no_event_before_all_have_spoken(config: Config) -> None:
    dog = Watchdog(config)
    dog.adopt([PARKED], 0.0)
    assert dog.look(None, [], 1.0) == [PARKED]
    assert dog.look(None, [], 60.0) == [PARKED]
    at_s = 61.0
    while at_s < 60.0 + START_S:
        assert dog.look(status(config), [], at_s) == [PARKED]
        at_s += 1.0
    dog.look(status(config, capture(), apply({"parked": 0})), [], 61.0 + START_S)
    assert dog.look(status(config, capture(), apply({"parked": 0})), [], 61.0 + START_S + CLEAR_S) == []


def test_a_kafka_that_is_away_keeps_what_was_known_and_is_told(config: Config) -> None:
    dog = Watchdog(config)
    stuck = status(config, capture(), apply({"parked": 3}))
    dog.look(stuck, [], 0.0)
    assert [w.subject for w in dog.look(stuck, [], 30.0)] == ["flow mirror"]
    dog.look(None, [], 32.0, kafka="no broker")
    found = dog.look(None, [], 32.0 + HOLD_S["stalled"], kafka="no broker")
    assert [(w.rule, w.subject) for w in found] == [("dead_letter", "flow mirror"), ("stalled", "kafka")]


class Frozen:
    """A watcher by a clock of ours: heartbeats of all come each second, as long as Kafka takes them."""

    def __init__(self, config: Config) -> None:
        self.now_s = 0.0
        self._at = {"clock_s": lambda: self.now_s, "clock_us": lambda: NOW_US + int(self.now_s * S)}
        self.heartbeats = Heartbeats(config, **self._at)
        self._dog = Watchdog(config)

    def beats(self, *records: StatusRecord) -> None:
        at_us = NOW_US + int(self.now_s * S)
        self.heartbeats.take([r if r.ended else replace(r, at_us=at_us, seen_us=at_us) for r in records])

    def look(self) -> list[tuple[str, str]]:
        status, kafka = self.heartbeats.heard(KAFKA_S), self.heartbeats.why_quiet(KAFKA_S)
        found = self._dog.look(status, [], self.now_s, kafka=kafka)
        return [(wrong.subject, wrong.text) for wrong in found]


def test_a_kafka_that_stands_still_is_one_event_and_no_dead_process(config: Config) -> None:
    """Also where it is still read, and takes nothing: not even the watcher's own heartbeat comes."""
    frozen, told = Frozen(config), set[str]()
    everybody = capture(), apply({"lag_records": 3}), record("run:acme")
    while frozen.now_s < 30.0:
        frozen.beats(*everybody)
        assert frozen.look() == []
        frozen.now_s += 1.0
    kept = frozen.heartbeats.records
    while frozen.now_s < 120.0:
        if frozen.now_s > 60.0:  # answers again, and has nothing that is later
            frozen.heartbeats.take(list(kept))
        found = frozen.look()
        told |= {subject for subject, _ in found}
        frozen.now_s += 1.0
    assert told == {"kafka"}
    assert "not even this process's own" in found[0][1]
    frozen.beats(*everybody)
    parts = [replace(r, at_us=kept[0].at_us, seen_us=kept[0].seen_us) for r in everybody[:2]]
    while frozen.now_s < 128.0:  # the others come back one after the other
        own = replace(everybody[2], at_us=NOW_US + int(frozen.now_s * S), seen_us=0)
        frozen.heartbeats.take([*parts, own])
        assert [subject for subject, _ in frozen.look()] == ["kafka"]
        frozen.now_s += 1.0
    while frozen.now_s < 128.0 + CLEAR_S:
        frozen.beats(*everybody)
        found = frozen.look()
        frozen.now_s += 1.0
    assert found == []


def test_who_dies_while_others_speak_is_told(config: Config) -> None:
    frozen = Frozen(config)
    frozen.beats(capture(), apply(), record("run:acme"))
    dead = frozen.heartbeats.records[1]
    while frozen.now_s < START_S + SILENT_AFTER_S + HOLD_S["stalled"]:
        own = replace(record("run:acme"), at_us=NOW_US + int(frozen.now_s * S), seen_us=0)
        frozen.heartbeats.take([replace(own, part="capture:shop", kind="capture", name="shop"), dead, own])
        found = frozen.look()
        frozen.now_s += 1.0
    assert [subject for subject, _ in found] == ["apply:copy"]


def test_the_page_names_kafka_before_all_that_is_silent_by_it(tmp_path: Path) -> None:
    config = parse(CONFIG, tmp_path / "tailrace.yaml", environ={})
    frozen = Frozen(config)
    page = Watch(config, Database(config), frozen.heartbeats, lambda: record("serve:acme"), admin=False)
    frozen.beats(capture(), apply())
    assert page.status().findings == []
    frozen.now_s = 5.5
    worst, *rest = page.status().findings
    assert (worst.subject, worst.counts) == ("kafka", True)
    assert "none has come for 6 s, not even this process's own" in worst.text
    assert {finding.subject for finding in rest} >= {"capture:shop"}
