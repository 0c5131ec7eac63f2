"""The past of the flows in SQLite and in Postgres: written by one process, coarser with age, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from consumers.control.database import Database
from consumers.control.downsample import TIERS, Sample
from consumers.control.lease import Lease, LeaseLost
from consumers.control.sampler import LOOK_S, Sampler
from consumers.control.samples import Samples, samples
from consumers.views import Status, build
from streamer.config import Config
from tests.harness.control import control_config

FLOWS = "targets: {copy: {kind: memory}}\nflows: {mirror: {from: 'shop.*.*', to: copy}}\n"
NOW_S = 1_800_000_000  # a multiple of every step
US = 1_000_000


@pytest.fixture
def config(tmp_path: Path, control_url: str) -> Config:
    return control_config(tmp_path, FLOWS, url=control_url)


class Written:
    """Samples of flows, written by the holder of a lease."""

    def __init__(self, config: Config) -> None:
        self.database = Database(config)
        self.lease = Lease(self.database, "jobs", "one")
        self.lease.open()
        assert self.lease.beat()
        self.samples = Samples(self.database)
        self.samples.open()

    def write(self, at_s: int, lag_ms: int | None, *flows: str) -> None:
        step = {flow: Sample(at_s, lag_ms, lag_ms, 5, 9, 1.0, 0, "OK") for flow in flows or ("mirror",)}
        self.samples.write(self.lease, step, at_s)

    def counts(self) -> dict[int, int]:
        with self.database.begin() as connection:
            wanted = select(samples.c.step_s, func.count()).group_by(samples.c.step_s)
            return {row[0]: row[1] for row in connection.execute(wanted)}


def test_steps_become_coarser_ones_and_what_is_old_goes(config: Config) -> None:
    written = Written(config)
    old_s = NOW_S - TIERS[-1].kept_s
    figures = {"lag_worst_ms": 7, "state": "OK", "flow": 1}
    with written.database.begin() as connection:  # a week ago: about to go
        rows = [{"step_s": tier.step_s, "at_s": old_s - tier.step_s, **figures} for tier in TIERS]
        connection.execute(insert(samples), rows)
    for step in range(61):
        written.write(NOW_S + step * 10, 100 if step != 30 else 90_000, "mirror", "other")
    assert written.counts() == {10: 122, 60: 20, 600: 2}
    found = written.samples.history("mirror", NOW_S * US, 1000, (NOW_S + 620) * US)
    assert (found["step_s"], found["lag_worst_s"].count(90.0), found["lag_s"][:3]) == (10, 1, [0.1] * 3)
    week = written.samples.history("mirror", 0, 1000, (NOW_S + 620) * US)
    assert (week["step_s"], week["lag_worst_s"][-2:]) == (1200, [None, 90.0])
    assert week["at_us"][-1] == NOW_S * US
    assert {*written.samples.history("miror", 0, 10, NOW_S * US)["lag_s"]} == {None}


def test_the_last_minutes_of_all_flows_at_once(config: Config) -> None:
    written = Written(config)
    written.write(NOW_S - 200, 9000, "mirror")
    for ago_s in (120, 110, 100, 80, 10):
        written.write(NOW_S - ago_s, ago_s * 10, "mirror", *(["late"] if ago_s < 100 else []))
    written.write(NOW_S, None, "mirror")
    found = written.samples.worst_lags((NOW_S - 120) * US, (NOW_S + 5) * US)
    assert found["at_us"] == [(NOW_S - ago_s) * US for ago_s in range(120, -1, -10)]
    gaps = [None] * 6
    assert (found["step_s"], found["flows"]) == (
        10,
        {
            "mirror": [1.2, 1.1, 1.0, None, 0.8, *gaps, 0.1, None],
            "late": [None, None, None, None, 0.8, *gaps, 0.1, None],
        },
    )


def test_a_week_is_there_after_a_restart(config: Config) -> None:
    week_s = TIERS[-1].kept_s
    assert week_s == 7 * 86_400
    written = Written(config)
    for ago_s in (week_s - 3600, week_s - 3590, 1200, 10):
        written.write(NOW_S - ago_s, 700 if ago_s > 3600 else 200)
    written.lease.give_up()
    written.database.close()
    again = Written(config)  # as another process would
    again.write(NOW_S, 300)
    found = again.samples.history("mirror", (NOW_S - week_s) * US, 1000, NOW_S * US)
    known = {at_us // US: lag_s for at_us, lag_s in zip(found["at_us"], found["lag_s"], strict=True) if lag_s}
    oldest_s = min(known)
    assert NOW_S - week_s <= oldest_s <= NOW_S - week_s + 3600
    assert (known[oldest_s], known[max(known)]) == (0.7, 0.3)


def test_who_takes_over_writes_the_coarse_step_that_another_began(config: Config) -> None:
    written = Written(config)
    written.write(NOW_S, 100)
    written.write(NOW_S + 10, 500)
    written.write(NOW_S + 300, 200)
    assert written.counts() == {10: 3, 60: 1}
    found = written.samples.history("mirror", NOW_S * US, 100, (NOW_S + 5 * 3600) * US)
    assert (found["lag_worst_s"][0], found["lag_s"][0]) == (0.5, 0.1)


def test_a_clock_that_was_set_back_writes_again_what_is_later(config: Config) -> None:
    written = Written(config)
    for at_s in (NOW_S + 1000, NOW_S + 1060, NOW_S, NOW_S + 10):
        written.write(at_s, 100)
    assert written.counts() == {10: 2}


def test_who_has_lost_the_lease_writes_nothing(config: Config) -> None:
    written = Written(config)
    written.lease.give_up()
    other = Lease(written.database, "jobs", "other")
    assert other.beat()
    with pytest.raises(LeaseLost):
        written.write(NOW_S, 100)
    assert written.counts() == {}


async def test_a_step_is_written_when_it_has_ended(config: Config) -> None:
    written = Written(config)
    at_us = NOW_S * US

    def status() -> Status:
        return build(config, [], at_us, {})

    sampler = Sampler(written.samples, written.lease, status)
    while at_us <= (NOW_S + 10) * US:
        await sampler.turn(status())
        at_us += round(LOOK_S * US)
    assert written.counts() == {10: 1}
    found = written.samples.history("mirror", NOW_S * US, 10, (NOW_S + 5) * US)
    assert (found["state"], found["lag_s"]) == (["UNKNOWN"], [None])
