"""What a check found: a level, a sentence, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from streamer.errors import EXIT_FINDING, EXIT_OK, TailraceError


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # worth knowing; nothing to mend
    WARN = "warn"  # it runs, with a risk or a part left out
    FAIL = "fail"  # it cannot run until this is mended


@dataclass(frozen=True, slots=True)
class Check:
    """`subject`: 'source shop'; `fix`: what to do, in words; `sql`: the exact statements.

    No field ever holds a secret.
    """

    subject: str
    check: str
    level: Level
    what: str
    fix: str = ""
    sql: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.level is not Level.FAIL

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "subject": self.subject,
            "check": self.check,
            "ok": self.ok,
            "level": self.level.value,
            "what": self.what,
            "fix": self.fix,
            "sql": list(self.sql),
        }


@dataclass(frozen=True, slots=True)
class Report:
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks)

    @property
    def exit_code(self) -> int:
        return EXIT_OK if self.ok else EXIT_FINDING

    def plain(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [c.plain() for c in self.checks]}


@dataclass(slots=True)
class Findings:
    """Collects the checks of one subject."""

    subject: str
    checks: list[Check] = field(default_factory=list)
    store: tuple[object, ...] | None = None  # of a target: the same for every URL of it, once it has answered

    def ok(self, check: str, what: str) -> None:
        self.checks.append(Check(self.subject, check, Level.OK, what))

    def note(self, check: str, what: str, fix: str = "", sql: Iterable[str] = ()) -> None:
        self.checks.append(Check(self.subject, check, Level.NOTE, what, fix, tuple(sql)))

    def warn(self, check: str, what: str, fix: str = "", sql: Iterable[str] = ()) -> None:
        self.checks.append(Check(self.subject, check, Level.WARN, what, fix, tuple(sql)))

    def fail(self, check: str, what: str, fix: str = "", sql: Iterable[str] = ()) -> None:
        self.checks.append(Check(self.subject, check, Level.FAIL, what, fix, tuple(sql)))

    def error(self, check: str, error: TailraceError) -> None:
        """An error of the program itself already says what, where and what to do."""
        what = f"{error.where}: {error.what}" if error.where else error.what
        self.fail(check, what, error.fix)
