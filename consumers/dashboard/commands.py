"""What can be asked of a flow over HTTP, and the `tailrace` command that it is. Pure.

What cannot be taken back (a replay, a repair, a discard) is asked for twice: as a dry run, and then with the
number of that dry run.
"""

from __future__ import annotations

from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field

from consumers.control.actions import Asked
from streamer.config import Flow

DRY_RUN_US = 15 * 60 * 1_000_000  # what it foretold is not so any more
KEYS_LIMIT = 1_000
TEXT_LIMIT = 10_000

PRINTED = r"^[^\x00-\x1f\x7f]*$"  # a command line ends at a NUL; the others nobody can read in the trail

Text = Annotated[str, Field(max_length=TEXT_LIMIT, pattern=PRINTED)]
Offset = Annotated[int, Field(ge=0, le=2**63 - 1)]
Number = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of an action, an override: the control database's own

DRY = "without `dry_run: false` it is only foretold"
AFTER = "the number of the dry run that foretold this"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Decision(Body):
    """Of what a flow holds."""


class Pause(Body):
    why: Annotated[str, Field(max_length=200, pattern=PRINTED)] = Field("", description="for those who look")


class Reconcile(Body):
    """A comparison, which changes nothing; with `repair`, publishing again what differs."""

    repair: bool = False
    delete_extra: bool = Field(False, description="repair rows that only the target has: delete them")
    dry_run: bool = Field(True, description=f"of a repair: {DRY}")
    after: Number | None = Field(None, description=AFTER)


class Replay(Body):
    """Going back in the log. One of `from_*`; with a `to_*` or `keys` only those events, once more."""

    from_start: bool = False
    from_time: Text = Field("", description="of publishing, or how long ago: 10m, 2h")
    from_lsn: Text = ""
    from_offset: Offset | None = None
    to_time: Text = ""
    to_lsn: Text = ""
    to_offset: Offset | None = None
    keys: list[Text] = Field(default_factory=list, max_length=KEYS_LIMIT)
    topic: Text = ""
    partition: Offset | None = None
    dry_run: bool = Field(True, description=DRY)
    after: Number | None = Field(None, description=AFTER)


class Letters(Body):
    """Which of the flow's parked keys; all of them unless something is given."""

    table: Text = ""
    key: Text = ""
    reason: Text = Field("", description="a code, or words of the message")


class Retry(Letters):
    dry_run: bool = False


class Discard(Letters):
    dry_run: bool = Field(True, description=DRY)
    after: Number | None = Field(None, description=AFTER)


Wish = Decision | Pause | Reconcile | Replay | Retry | Discard


def asked(kind: str, flow: Flow, wish: Wish, by: str) -> Asked:
    """`kind`: reconcile, replay, retry, discard, approve, refuse, pause or resume."""
    dry_run = bool(getattr(wish, "dry_run", False))
    options = wish.model_dump(exclude={"dry_run", "after"}, exclude_defaults=True)
    if isinstance(wish, Reconcile):
        words = ["reconcile", flow.name]
        dry_run = wish.repair and dry_run
        words += _flags({"repair": wish.repair and not dry_run, "delete-extra": wish.delete_extra})
    elif isinstance(wish, Replay):
        words = ["replay", flow.name, *_replay(wish)]
    elif isinstance(wish, Retry | Discard):
        words = ["dead-letters", kind, flow.target, f"--flow={flow.name}"]
        words += _given({"table": wish.table, "key": wish.key, "reason": wish.reason})
    else:
        words = [kind, flow.name]
        words += _given({"why": wish.why}) if isinstance(wish, Pause) else []
    words += ["--dry-run"] if dry_run else []
    form = orjson.dumps([kind, flow.name, options], option=orjson.OPT_SORT_KEYS).decode()
    return Asked(kind, flow.name, form, tuple(words), dry_run, by)


def needs_dry_run(wish: Wish) -> bool:
    """Whether it is to be foretold first."""
    if isinstance(wish, Reconcile):
        return wish.repair and not wish.dry_run
    return isinstance(wish, Replay | Discard) and not wish.dry_run


def letters(flow: Flow) -> tuple[str, ...]:
    """The command that lists a flow's parked keys."""
    return "dead-letters", "list", flow.target, f"--flow={flow.name}", "--json"


def _replay(wish: Replay) -> list[str]:
    values: dict[str, object] = {
        name.replace("_", "-"): getattr(wish, name)
        for name in ("from_time", "from_lsn", "from_offset", "to_time", "to_lsn", "to_offset")
    }
    values |= {"topic": wish.topic, "partition": wish.partition}
    keys = [f"--key={key}" for key in wish.keys]
    return [*_flags({"from-start": wish.from_start}), *_given(values), *keys]


def _flags(flags: dict[str, bool]) -> list[str]:
    return [f"--{name}" for name, given in flags.items() if given]


def _given(values: dict[str, object] | dict[str, str]) -> list[str]:
    """One word each: no value can be an option of its own."""
    return [f"--{name}={value}" for name, value in values.items() if value not in ("", None)]
