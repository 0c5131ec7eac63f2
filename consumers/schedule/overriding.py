"""The schedules in force: those of the file, and over them what people have changed. Pure.

A change that does not fit the file any more, as of a job that is gone, is not in force, and says why; the
others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consumers.control.overrides import Override
from streamer.config import Config
from streamer.config.changed import PREFIX, Change, change_of, changed, plain
from streamer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Standing:
    """`before`, `now`: what the file says and what is in force, by key, as `at` may give way to `every`.
    `problem`: why it is not in force."""

    override: Override
    job: str
    key: str
    before: dict[str, Any]
    now: dict[str, Any]
    problem: str = ""

    @property
    def is_change(self) -> bool:
        """Whether it is in force, and another than the file's."""
        return not self.problem and self.before != self.now

    def plain(self) -> dict[str, Any]:
        return {
            **{name: getattr(self.override, name) for name in ("override", "path", "value", "by", "at_us")},
            **{name: getattr(self, name) for name in ("job", "key", "before", "now", "problem")},
        }


@dataclass(frozen=True, slots=True)
class InForce:
    config: Config
    changes: tuple[Change, ...]  # those in force
    standings: tuple[Standing, ...]  # of all

    @property
    def overrides(self) -> list[Override]:
        return [standing.override for standing in self.standings]

    def keys(self, job: str) -> list[str]:
        """What of a job is not as in the file."""
        return [each.key for each in self.standings if each.job == job and each.is_change]


def in_force(config: Config, overrides: Sequence[Override]) -> InForce:
    fits: list[Change] = []
    problems: dict[int, str] = {}
    found = config
    for override in overrides:
        try:
            change = change_of(config, override.path, override.value)
            found = changed(config, [*fits, change])
            fits.append(change)
        except ConfigError as error:
            problems[override.override] = error.what
    standings = []
    for override in overrides:
        job, _, key = override.path.removeprefix(PREFIX).rpartition(".")
        at = Change(job, key, override.value)
        problem = problems.get(override.override, "")
        standings.append(Standing(override, job, key, plain(config, at), plain(found, at), problem))
    return InForce(found, tuple(fits), tuple(standings))
