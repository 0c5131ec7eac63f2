"""The error tree: one root, four kinds; the kind decides the reaction.

    TailraceError
    +-- RetryableError    the same call may succeed later: wait with backoff, say so in `status`
    |   +-- SourceUnavailable, KafkaUnavailable, TargetUnavailable
    +-- FatalError        going on would be a guess: stop, keep everything as it is
    |   +-- PositionError   the source's history and the position do not fit together
    |   +-- FencedError     another process has taken this one's place
    +-- BadRecordError    one record cannot be used
    |   +-- DecodeError     bytes that do not follow their grammar
    +-- ConfigError       the user's file, privileges or servers must change first

Every message says what happened, where, and what to do next. Foreign exceptions are translated
at the border with `raise ... from`.
"""

from __future__ import annotations

from traceback import extract_tb

EXIT_OK = 0
EXIT_FINDING = 1
EXIT_RUNTIME = 2
EXIT_INCOMPLETE = 3
EXIT_REPAIRED = 4
EXIT_USAGE = 64


class TailraceError(Exception):
    """Root of all errors of Tailrace.

    `what` is one sentence; `fix` tells the reader what to do next; `where` is a place (file:line,
    table, topic[partition]@offset). `str()` joins them.
    """

    exit_code = EXIT_RUNTIME

    def __init__(self, what: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.where = where

    @property
    def problems(self) -> tuple[TailraceError, ...]:
        """Each single thing that is wrong, when there are several; else the error itself."""
        return (self,)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.fix}" if self.fix else text


class RetryableError(TailraceError):
    """The same call may succeed later."""


class SourceUnavailable(RetryableError):
    """The source does not answer, or closed the line."""


class KafkaUnavailable(RetryableError):
    """Kafka does not answer, or a transaction's outcome is unknown."""


class TargetUnavailable(RetryableError):
    """The target does not answer, is read-only, or asked for a retry."""


class FatalError(TailraceError):
    """Going on would be a guess."""


class PositionError(FatalError):
    """The source's history and the recorded position do not fit together (H2, H4, H17)."""


class FencedError(FatalError):
    """Another process has taken this one's place."""


class BadRecordError(TailraceError):
    """One record cannot be used."""


class DecodeError(BadRecordError):
    """Bytes that do not follow their grammar; `offset` is the place in the payload, in bytes."""

    def __init__(self, what: str, *, offset: int, where: str = "", fix: str = "") -> None:
        super().__init__(f"{what} at byte {offset}", where=where, fix=fix)
        self.offset = offset


class ConfigError(TailraceError):
    """The user's file, privileges or servers must change first."""

    exit_code = EXIT_USAGE


def bug(error: BaseException) -> str:
    """What is said of an error that is none of ours: of a group its first one, and where it was raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raised = extract_tb(error.__traceback__, limit=-1)
    place = "".join(f" ({frame.filename}:{frame.lineno}, in {frame.name})" for frame in raised)
    return "; ".join([f"a bug of Tailrace: {error!r}{place}", *getattr(error, "__notes__", ())])


def said_by(error: BaseException) -> str:
    """What an exception of others' code says, as text that can be kept and printed. Raises nothing."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  it may be anything
        said = ""
    return (said or type(error).__name__).encode("utf-8", "backslashreplace").decode()
