"""`schedules.jobs`: what a job may be, and the message of each mistake."""

from __future__ import annotations

import pytest

from streamer.config import parse
from tests.harness.configs import SMALL, mistake

JOBS = SMALL + "reconcile: {audit: {flow: mirror}}\nschedules: {timezone: Europe/Vienna, jobs: {%s}}\n"


def test_each_kind_and_each_way_to_be_due() -> None:
    config = parse(
        JOBS % "a: {reconcile: audit, cron: '30 6 * * mon-fri', grace: 5m, retries: 3, overlap: queue},"
        " b: {exec: 'app.tasks:tidy', every: 10m, after: [a]},"
        " c: {backfill: shop.public.orders, at: ['02:00']},"
        " d: {replay: mirror, after: [c], args: {from: start}}",
        environ={},
    )
    jobs = config.schedules.jobs
    assert {name: job.kind for name, job in jobs.items()} == {
        "a": "reconcile",
        "b": "exec",
        "c": "backfill",
        "d": "replay",
    }
    assert (jobs["a"].grace_s, jobs["a"].retries, jobs["a"].overlap) == (300.0, 3, "queue")
    assert (jobs["b"].grace_s, jobs["b"].overlap, jobs["b"].every_s) == (60.0, "skip", 600.0)


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ("a: {every: 1m}", ["a job does one thing", "give one of pull, exec, reconcile, backfill, replay"]),
        ("a: {reconcile: audit, exec: 'x:y', every: 1m}", ["a job does one thing"]),
        ("a: {reconcile: audit}", ["never fires", "every, at, cron or after"]),
        ("a: {reconcile: audit, every: 1m, cron: '* * * * *'}", ["`every` and `cron` exclude each other"]),
        ("a: {reconcile: audit, cron: '61 * * * *'}", ["is not a cron line", "30 6 * * mon-fri"]),
        ("a: {reconcile: audit, cron: 'daily'}", ["is not a cron line"]),
        ("a: {reconcile: audit, cron: '0 0 30 2 *'}", ["a cron line that never comes"]),
        ("a: {reconcile: audit, cron: '0 ٦ * * *'}", ["characters that no cron line has"]),
        ("a: {reconcile: audit, cron: '0 6 * *'}", ["has 4 fields, not 5"]),
        ("a: {reconcile: audit, cron: '0 6 * * fri-mon'}", ["'fri-mon' ends before it begins"]),
        ("a: {reconcile: audit, cron: '0 6 * * mon#2'}", ["characters that no cron line has"]),
        ("a: {reconcile: audit, cron: '*/90 * * * *'}", ["no second minute is 90 later"]),
        ("a: {reconcile: audit, every: 500ms}", ["'500ms' must be 1s or more"]),
        ("a: {reconcile: audit, every: 1h, priority: true}", ["is not a number"]),
        (
            "a: {reconcile: audit, every: 1h, priority: 99999999999}",
            ["99999999999 must be 1,000,000 or less"],
        ),
        ("a: {reconcile: audit, every: 3661d}", ["'3661d' must be 3660d or less"]),
        *(
            (f"a: {{reconcile: audit, every: 1h, {key}: 3661d}}", ["'3661d' must be 3660d or less"])
            for key in ("stale_after", "max_runtime", "grace")
        ),
        ("a: {reconcile: audit, at: ['25:00']}", ["is not a time of day"]),
        ("a: {reconcile: adit, every: 1m}", ["there is no reconcile 'adit'", "did you mean 'audit'"]),
        ("a: {replay: miror, every: 1m}", ["there is no flow 'miror'", "did you mean 'mirror'"]),
        ("a: {backfill: shp.public.orders, every: 1m}", ["'shp'", "shop"]),
        ("a: {reconcile: audit, after: [b]}", ["there is no other job 'b'"]),
        ("a: {reconcile: audit, after: [a]}", ["the job waits for itself: a after a"]),
        (
            "a: {exec: 'x:y', after: [c]}, b: {exec: 'x:y', after: [a]}, c: {exec: 'x:y', after: [b]}",
            ["the job waits for itself: a after c after b after a"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_cure(jobs: str, words: list[str]) -> None:
    text = mistake(JOBS % jobs)
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("name", ["a/b", "", " ", ".", "..", "-x", "a.b", "x" * 101])
def test_a_name_that_no_address_and_no_command_could_have(name: str) -> None:
    """Of a job: it has a page, and is a word of `tailrace run-job`. Of a channel, too."""
    for place, text in (
        ("schedules.jobs", JOBS % f"'{name}': {{reconcile: audit, every: 1h}}"),
        ("alerts.channels", SMALL + f"alerts: {{channels: {{'{name}': {{}}}}}}\n"),
    ):
        assert f"{place}.{name}: is not a name" in mistake(text)


def test_a_time_zone_that_is_none() -> None:
    text = mistake(JOBS.replace("Europe/Vienna", "Europe/Vjenna") % "a: {reconcile: audit, every: 1m}")
    assert "is not a time zone" in text
