"""The jobs of a config file with what people have changed, and what the control database knows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.control.overrides import IN_FORCE_LIMIT, Outrun, Override, Overrides
from consumers.schedule.overriding import InForce, in_force
from consumers.schedule.plan import Decision, JobState, Planned, planned
from consumers.schedule.view import Past, job_views
from streamer.config import Config
from streamer.config.base import no_such
from streamer.config.built import unbuilt_scheduled
from streamer.config.changed import change_of, changed
from streamer.errors import ConfigError, RetryableError

JUDGED_LIMIT = 20  # of one change: each time another one was first, of the few people who change schedules

_T = TypeVar("_T")


class Schedule:
    """Errors of the control database are RetryableError; nothing here waits for anything else."""

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self.jobs = Jobs(database)
        self.overrides = Overrides(database)
        self._known: tuple[list[Override], InForce] = [], in_force(config, [])
        self._pasts: tuple[dict[str, JobState], dict[str, list[Past]]] = {}, {}

    def open(self) -> None:
        self.jobs.open()
        self.overrides.open()

    def in_force(self) -> InForce:
        """The file's schedules with what people have changed; judged anew when that has changed."""
        found = self.overrides.in_force()
        before, known = self._known
        if found != before:
            known = in_force(self._config, found)
            self._known = found, known
        return known

    def plans(self) -> dict[str, Planned]:
        """Jobs that are not built yet are left out."""
        return _plans(self.in_force())

    def change(self, path: str, value: Any, by: str, now_us: int) -> int:
        """From now on, for all processes; its number. Raises ConfigError as the file would."""
        return self._judged(lambda: self._change(path, value, by, now_us))

    def _judged(self, work: Callable[[], _T]) -> _T:
        """What is written holds beside what others have written meanwhile: else it is judged once more."""
        for _ in range(JUDGED_LIMIT):
            with suppress(Outrun):
                return work()
        what = f"the schedules were changed {JUDGED_LIMIT} times while this change was judged"
        raise RetryableError(what, fix="try it again")

    def _change(self, path: str, value: Any, by: str, now_us: int) -> int:
        change = change_of(self._config, path, value)
        known = self.in_force()
        if len(known.standings) >= IN_FORCE_LIMIT:
            what = f"{IN_FORCE_LIMIT} changes are in force"
            raise ConfigError(
                what, fix="`tailrace config export` prints them for the file; then roll them back"
            )
        self._check_shown(changed(self._config, [*known.changes, change]), change.job)
        return self.overrides.put(path, value, change.replaces, by, now_us, beside=known.overrides)

    def _check_shown(self, config: Config, job: str) -> None:
        """What is kept is seen by every process at once: none may fail at it. Raises ConfigError."""
        after = InForce(config, (), ())
        plans, states = _plans(after), self.jobs.states()
        try:
            orjson.dumps(self._views(after, plans, states, {}, datetime.now(UTC)))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the next start of {job} cannot be told: {error}", fix="give a time that comes within years"
            ) from error

    def take_back(self, numbers: Sequence[int], by: str, now_us: int) -> list[Override]:
        """The file counts again: of these overrides, or of all. Raises ConfigError."""
        return self._judged(lambda: self._take_back(numbers, by, now_us))

    def _take_back(self, numbers: Sequence[int], by: str, now_us: int) -> list[Override]:
        known = self.in_force()
        standing = {each.override.override: each for each in known.standings}
        for number in numbers:
            if number not in standing:
                raise ConfigError(
                    f"no override {number} is in force",
                    fix=f"`tailrace config diff` lists them: {', '.join(map(str, standing)) or 'none'}",
                )
        gone = [standing[number].override for number in numbers or standing]
        rest = [each.override for each in standing.values() if each.override not in gone]
        trouble = {each.override.override: each.problem for each in in_force(self._config, rest).standings}
        for number, problem in trouble.items():
            if problem and not standing[number].problem:
                what = f"override {number} needs it: without it {problem}"
                raise ConfigError(what, fix=f"take {number} back first, or all of them: --all")
        gone_numbers = [override.override for override in gone]
        self.overrides.undo(gone_numbers, by, now_us, beside=known.overrides)
        return gone

    def view(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Of these jobs, or of all. Raises ConfigError for a name that is none."""
        known = self.in_force()
        plans, now = _plans(known), datetime.now(UTC)
        for name in names:
            if name not in plans:
                raise no_such("job", name, plans, self._config.path)
        pasts = self.jobs.histories(names or plans)
        found = self._views(known, plans, self.jobs.states(), pasts, now)
        return [view for view in found if not names or view["name"] in names]

    def told(
        self, plans: dict[str, Planned], states: dict[str, JobState], decision: Decision
    ) -> list[dict[str, Any]]:
        """All of them as a scheduler's last turn saw them: it has just read them, and asks each second."""
        at, pasts = self._pasts
        if states != at or not plans.keys() <= pasts.keys():
            pasts = self.jobs.histories(plans)
            self._pasts = states, pasts
        return self._views(self._known[1], plans, states, pasts, datetime.now(UTC), decision)

    def _views(
        self,
        known: InForce,
        plans: dict[str, Planned],
        states: dict[str, JobState],
        pasts: dict[str, list[Past]],
        now: datetime,
        decision: Decision | None = None,
    ) -> list[dict[str, Any]]:
        states = {name: states.get(name) or JobState(now) for name in plans}
        enabled = self._config.control.enabled
        found = job_views(plans, states, pasts, now, enabled=enabled, decision=decision)
        return [{**view, "overridden": known.keys(view["name"])} for view in found]


def _plans(known: InForce) -> dict[str, Planned]:
    all_ = planned(known.config)
    return {name: plan for name, plan in all_.items() if not unbuilt_scheduled(known.config, name)}
