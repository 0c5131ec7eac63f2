"""Signs that notifications were lost, or that the data changed without any (H21).

Owns the look at the server each second, and what of it is a gap. A sign is only reported here: the session
publishes the gap and heals it; what a key holds is decided by the re-read script.

    sign                                   what it tells
    invalidate push without keys           FLUSHDB, FLUSHALL, or a replica that loaded its primary's data anew
    commandstats: calls of swapdb          SWAPDB: it has no notification and no invalidation
    run_id, master_replid, role            restart, another primary, failover
    notify-keyspace-events                 events were switched off
    canary: our own message each second    a subscription that is dead and does not know it
    expired_keys, evicted_keys             more keys gone than events came, where all of them are watched
    total_commands_processed went down,
    or calls of config|resetstat changed   CONFIG RESETSTAT: the counts above tell nothing about this second

INFO and PUBLISH are one transaction on the server, so the canary stands in the subscription exactly where
the counts were taken. Tracking is on in the command line, so a flush is known before the reply of any
command that was carried out after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hiredis import ReplyError

from streamer.errors import SourceUnavailable
from streamer.redis.connection import RedisConnection
from streamer.redis.gaps import Gap, Gaps, Reason
from streamer.redis.notifications import SETTING, Watch, ensure_setting, missing_classes, setting_of
from streamer.redis.replies import Command

LOOK_EVERY_S = 1.0  # so a SWAPDB is found within a second
CANARY_LIMIT_S = 5.0  # a reader that is busy for a second or two is late, not deaf
# Tracking is wanted for the message of a flush only; no key begins like this, so no other message comes.
TRACKED_PREFIX = b"\x00tailrace\x00nothing\x00"

_SECTIONS = ("server", "replication", "persistence", "stats", "commandstats", "keyspace")
_COUNT = re.compile(r"\b(calls|failed_calls)=(\d+)")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the server showed."""

    run_id: str
    replid: str
    role: str  # master or slave, as the server says it
    version: str
    setting: str | None  # notify-keyspace-events; None: it cannot be read
    server_us: int
    swaps: int = 0
    commands: int = 0
    resets: str = ""  # what commandstats has of CONFIG RESETSTAT, which sets its own count to 1
    expired: int = 0
    evicted: int = 0
    link: str = ""  # of a replica to its primary: up or down
    loading: bool = False
    databases: Mapping[int, int] = field(default_factory=dict)  # database -> keys

    @property
    def gone(self) -> int:
        return self.expired + self.evicted


def read_look(info: str, setting: str | None, server_us: int) -> Look:
    """A look from the text of INFO's sections; what an older server does not tell is empty or 0."""
    lines = (line.partition(":") for line in info.splitlines())
    values = {name: value for name, _, value in lines}
    swap = {name: int(count) for name, count in _COUNT.findall(values.get("cmdstat_swapdb", ""))}
    databases = {
        int(name[2:]): int(value.partition("keys=")[2].partition(",")[0])
        for name, value in values.items()
        if name[:2] == "db" and name[2:].isdigit() and value.startswith("keys=")
    }
    return Look(
        run_id=values.get("run_id", ""),
        replid=values.get("master_replid", ""),
        role=values.get("role", ""),
        version=values.get("valkey_version") or values.get("redis_version", ""),
        setting=setting,
        server_us=server_us,
        swaps=swap.get("calls", 0) - swap.get("failed_calls", 0),
        resets=values.get("cmdstat_config|resetstat", ""),
        commands=int(values.get("total_commands_processed", 0)),
        expired=int(values.get("expired_keys", 0)),
        evicted=int(values.get("evicted_keys", 0)),
        link=values.get("master_link_status", ""),
        loading=values.get("loading") == "1" or values.get("async_loading") == "1",
        databases=databases,
    )


def changed(before: Look, after: Look) -> list[Gap]:
    """The gaps between two looks, also of two sessions."""
    if before.run_id != after.run_id:
        detail = f"the server's run was {before.run_id[:8]}, is {after.run_id[:8]}"
        return [Gap(Reason.RESTART, detail)]
    gaps = []
    if (before.role, before.replid) != (after.role, after.replid):
        detail = (
            f"the server was {before.role} in history {before.replid[:8]}, "
            f"is {after.role} in {after.replid[:8]}"
        )
        gaps.append(Gap(Reason.FAILOVER, detail))
    if after.commands < before.commands or after.resets != before.resets:
        gaps.append(Gap(Reason.COUNTERS, "CONFIG RESETSTAT set the server's counters to zero"))
    elif after.swaps != before.swaps:
        gaps.append(Gap(Reason.SWAP, f"SWAPDB ran {after.swaps - before.swaps} times"))
    return gaps


class Signs:
    """The looks of one session. `connection` is the line of commands, `watch` the subscription."""

    def __init__(
        self,
        connection: RedisConnection,
        watch: Watch,
        gaps: Gaps,
        *,
        needed: str,
        manage: bool,
        clock_s: Callable[[], float],
    ) -> None:
        """`needed`: letters of `notify-keyspace-events`; `manage`: they may be set by us."""
        self.last: Look | None = None
        self.findings: list[str] = []  # sentences for `status`
        self._connection = connection
        self._watch = watch
        self._gaps = gaps
        self._needed = needed
        self._manage = manage
        self._clock_s = clock_s
        self.looks = 0  # so many so far; also the number of the last canary
        self._unheard_s = 0.0  # when the first canary was sent that has not come yet
        self._counted: dict[int, int] = {}  # canary -> expired and evicted keys counted at it
        self._base: tuple[int, int] | None = None  # counted keys and events at the canary compared with
        self._seen_databases: set[int] = set()
        connection.on_push = self._on_push

    async def start(self) -> Look:
        """Tracking on, the setting as needed, the first look. After the watch's start, before the scan.

        Raises ConfigError that names what the ACL or the setting lacks.
        """
        await self._connection.command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", TRACKED_PREFIX)
        setting, was_set = await ensure_setting(self._connection, self._needed, manage=self._manage)
        if was_set:
            self._gaps.report(Reason.SETTING, f"{SETTING} was set to {setting!r}: events were missing before")
        return await self.look()

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate" and push[1] is None:
            self._gaps.report(Reason.FLUSH, "FLUSHDB or FLUSHALL ran, or the server loaded its data anew")

    async def look(self) -> Look:
        """Each LOOK_EVERY_S: report what is a gap. Raises when a line is dead, or the setting is wrong and
        not ours to mend."""
        look = await self._ask()
        if self.last is not None:
            for gap in changed(self.last, look):
                self._gaps.report(gap.reason, gap.detail)
                if gap.reason == Reason.COUNTERS:
                    self._base = None
                    self._counted.clear()
        await self._check_setting(look)
        self._check_gone(look)
        self._check_canary()
        self.findings = _findings(look)
        self.last = look
        return look

    async def _ask(self) -> Look:
        self.looks += 1
        infos: list[Command] = [("INFO", section) for section in _SECTIONS]
        commands: list[Command] = [
            ("MULTI",),
            *infos,
            ("TIME",),
            ("PUBLISH", self._watch.canary_channel, self._watch.canary_message(self.looks)),
            ("EXEC",),
            ("CONFIG", "GET", SETTING),
        ]
        *queued, done, setting = await self._connection.pipeline(commands, errors=True)
        for command, reply in zip(commands, [*queued, done], strict=False):
            if isinstance(reply, ReplyError):
                raise self._connection.translate(reply, command)
        for command, reply in zip(commands[1:], done, strict=False):
            if isinstance(reply, ReplyError):
                raise self._connection.translate(reply, command)
        text = "\n".join(section.decode("utf-8", "replace") for section in done[: len(_SECTIONS)])
        seconds, micros = done[len(_SECTIONS)]
        return read_look(text, setting_of(setting), int(seconds) * 1_000_000 + int(micros))

    async def _check_setting(self, look: Look) -> None:
        if look.setting is None or not (missing := missing_classes(look.setting, self._needed)):
            return
        try:
            await ensure_setting(self._connection, self._needed, manage=self._manage)
        finally:  # told when events come again: a scan that begins earlier would heal nothing
            self._gaps.report(Reason.SETTING, f"{SETTING} was {look.setting!r}, which lacks {missing}")

    def _check_gone(self, look: Look) -> None:
        """Compare counters and events at the same canary, where every database is watched as a whole."""
        self._seen_databases.update(look.databases)
        watch = self._watch
        if not self._seen_databases <= watch.whole or look.role != "master":
            self._base = None
            return
        self._counted[self.looks] = look.gone
        counted = self._counted.get(watch.canary)
        if counted is None:
            return
        for canary in [number for number in self._counted if number < watch.canary]:
            del self._counted[canary]
        if self._base is None:
            self._base = (counted, watch.gone_at_canary)
            return
        gone, events = counted - self._base[0], watch.gone_at_canary - self._base[1]
        if events < gone:
            self._gaps.report(Reason.DRIFT, f"{gone} keys expired or were evicted, {events} events came")
            self._base = (counted, watch.gone_at_canary)

    def _check_canary(self) -> None:
        """After a look, whose canary may still be under way; that of the look before it ought to be there.

        Silence is counted from the server's word that it has sent a canary: a server that stood still for
        longer than the limit has sent none.
        """
        now_s = self._clock_s()
        if self._watch.canary >= self.looks - 1:
            self._unheard_s = now_s
        silent_s = now_s - self._unheard_s
        if silent_s <= CANARY_LIMIT_S:
            return
        what = f"the subscription has been silent for {silent_s:.1f} s while messages were sent through it"
        self._gaps.report(Reason.CANARY, what)
        self._watch.connection.abort()
        raise SourceUnavailable(
            what, where=self._connection.where, fix="nothing: it is subscribed anew, and all is read again"
        )


def _findings(look: Look) -> list[str]:
    findings = []
    if look.setting is None:
        findings.append(f"{SETTING} cannot be read by this user: nobody notices when events are switched off")
    if look.link == "down":
        findings.append("this replica has lost its primary: what it holds is old")
    return findings
