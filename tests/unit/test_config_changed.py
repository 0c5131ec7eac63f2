"""Schedules changed beside the file: what can be, with the file's own messages, and their export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamer.config import ConfigFileError, parse
from streamer.config.changed import CHANGEABLE, Change, change_of, changed, exported, value_of
from streamer.config.operations import Job
from streamer.errors import ConfigError
from tests.harness.configs import SMALL

FILE = f"""{SMALL}
reconcile: {{audit: {{flow: mirror}}}}
schedules:
  timezone: Europe/Vienna
  jobs:
    audit: {{reconcile: audit, at: [02:00], on_done: [{{http: "https://h/${{HOOK:-hunter2}}"}}]}}
    tidy: {{exec: "app.tasks:tidy", every: 10m, after: [audit]}}
"""
CONFIG = parse(FILE, environ={})


def change(path: str, value: Any) -> Change:
    return change_of(CONFIG, path, value)


def test_what_takes_the_place_of_what() -> None:
    found = changed(
        CONFIG,
        [
            change("schedules.jobs.audit.cron", "30 6 * * *"),
            change("schedules.jobs.tidy.every", None),
            change("schedules.jobs.tidy.retries", 3),
        ],
    )
    audit, tidy = found.schedules.jobs["audit"], found.schedules.jobs["tidy"]
    assert (audit.cron, audit.at, len(audit.on_done)) == ("30 6 * * *", (), 1)
    assert (tidy.every_s, tidy.retries, tidy.after) == (None, 3, ("audit",))
    assert CONFIG.schedules.jobs["tidy"].every_s == 600.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", "soon"),
        ("cron", "61 * * * *"),
        ("at", ["25:00"]),
        ("retries", 11),
        ("overlap", "both"),
        ("after", ["tidi"]),
        ("after", ["tidy"]),
    ],
)
def test_a_bad_value_is_refused_as_in_the_file(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as beside:
        changed(CONFIG, [change(f"schedules.jobs.audit.{key}", value)])
    line = f"audit: {{reconcile: audit, at: [02:00], {key}: {value}"
    if key in ("at", "every", "cron"):
        line = line.replace(", at: [02:00]", "", 1)
    with pytest.raises(ConfigFileError) as in_file:
        parse(FILE.replace("audit: {reconcile: audit, at: [02:00]", line), environ={})
    assert (beside.value.what, beside.value.fix) == (in_file.value.what, in_file.value.fix)


@pytest.mark.parametrize("key", ["exec", "reconcile", "args", "before", "on_done", "pull", "evry"])
def test_what_a_job_does_is_changed_in_the_file_alone(key: str) -> None:
    with pytest.raises(ConfigError, match="edit the file"):
        change(f"schedules.jobs.tidy.{key}", "os:system")


def test_nothing_else_can_be_changed() -> None:
    known = {field.alias or name for name, field in Job.model_fields.items()}
    assert set(CHANGEABLE) < known
    for path in (
        "kafka.brokers",
        "schedules.timezone",
        "schedules.jobs.every",
        "control.enabled",
        "every",
        "",
    ):
        with pytest.raises(ConfigError, match="edit the file"):
            change(path, "x")
    with pytest.raises(ConfigError, match="there is no job 'tidi'"):
        change("schedules.jobs.tidi.every", "1m")
    with pytest.raises(ConfigError, match="too long"):
        change("schedules.jobs.tidy.every", "1" * 3000)


def test_values_of_the_command_line_are_read_as_in_the_file(tmp_path: Path) -> None:
    assert [
        value_of(text) for text in ("10m", "[02:00, '14:00']", "null", "false", "30 6 * * mon-fri", "3")
    ] == [
        "10m",
        ["02:00", "14:00"],
        None,
        False,
        "30 6 * * mon-fri",
        3,
    ]
    (tmp_path / "key").write_text("hunter2")
    for text in (f"${{file:{tmp_path}/key}}", "${HOME}", "[", "1m\nenabled: false"):
        with pytest.raises(ConfigError) as caught:
            value_of(text)
        assert "hunter2" not in str(caught.value)


def test_an_export_is_the_files_schedules_and_fits_into_it() -> None:
    changes = [
        change("schedules.jobs.audit.cron", "0 3 * * *"),
        change("schedules.jobs.tidy.after", None),
        change("schedules.jobs.tidy.at", ["02:00"]),
    ]
    text = exported(FILE, changes)
    assert "${HOOK:-hunter2}" in text
    again = parse(FILE[: FILE.index("schedules:")] + text, environ={})
    assert again.schedules == changed(CONFIG, changes).schedules
    assert exported(SMALL, []) == ""
