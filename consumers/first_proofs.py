"""A flow's first proof: beside `tailrace run` each flow is compared once its first copy is applied.

Owns which flow is due, one at a time. What a comparison finds goes where every reconcile's findings go;
here it is only said. One that did not come to its end is tried again a few times, and then left to a person.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from consumers.comparison import Outcome
from consumers.reconcile.job import Job, jobs_of
from consumers.reconcile.proofs import PROVED, Proofs
from consumers.views import FlowState, Status
from streamer.config import Config
from streamer.errors import TailraceError
from streamer.logs import Log
from streamer.status import State, now_us
from streamer.stopping import stopped_within

LOOK_S = 2.0  # between two looks for a flow that is due
RETRIES_S = (60.0, 300.0, 900.0)  # waits after tries that came to nothing; then a person looks
STEADY_S = 5.0  # ready for so long: a late flow's backfill is asked for, and told, within three
BEHIND_S = 10.0  # a flow that is further behind is still being filled; the fence waits for the rest

log = Log(__name__)

_COPIES = ("flow:", "table:")  # runs of backfills that are a flow's first copy
_GOING_ON = ("waiting", "running", "paused")
_READY = (FlowState.OK, FlowState.IDLE)


@dataclass(slots=True)
class _Tries:
    """Of one flow in one epoch."""

    since_us: int  # when the epoch was first seen here
    failed: int = 0
    not_before_s: float = 0.0
    over: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """What is said of a flow's first proof."""

    flow: str
    state: Literal["running", "equal", "drift", "repaired", "failed"]
    reason: str = ""
    run: str = ""

    def plain(self) -> dict[str, Any]:
        return {"proof": self.flow, "state": self.state, "reason": self.reason, "run": self.run}


class FirstProofs:
    """`compare`: runs one comparison to its end, or until the stop; `said`: takes the news."""

    def __init__(
        self,
        config: Config,
        *,
        compare: Callable[[Job, asyncio.Event], Awaitable[Outcome]],
        said: Callable[[News], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._compare = compare
        self._said = said
        self._clock_s = clock_s
        self._jobs = first_jobs(config)
        self._tries: dict[tuple[str, int], _Tries] = {}
        self._ready_since_s: dict[tuple[str, int], float] = {}
        self._trouble = ""

    def look(self, status: Status) -> None:
        """The flows as they are now."""
        now_s, since_s = self._clock_s(), self._ready_since_s
        self._ready_since_s = {each: since_s.get(each, now_s) for each in ready(status)}

    @property
    def _steady(self) -> list[tuple[str, int]]:
        now_s = self._clock_s()
        return [each for each, since_s in self._ready_since_s.items() if now_s - since_s >= STEADY_S]

    async def keep(self, stop: asyncio.Event) -> None:
        """Until `stop`; at once when there is nothing to prove. A process is ended with it."""
        if not self._jobs:
            return
        proofs = await self._opened(stop)
        if proofs is None:
            return
        try:
            while not await stopped_within(stop, LOOK_S):
                try:
                    await self.step(proofs, stop)
                    self._trouble = ""
                except TailraceError as error:  # the control database, which a comparison would need, too
                    self._complain(error)
        finally:
            proofs.close()

    async def _opened(self, stop: asyncio.Event) -> Proofs | None:
        while True:
            try:
                proofs = Proofs(self._config)
                await asyncio.to_thread(proofs.open)
                return proofs
            except TailraceError as error:
                self._complain(error)
            if await stopped_within(stop, RETRIES_S[0]):
                return None

    def _complain(self, error: TailraceError) -> None:
        if str(error) != self._trouble:
            log.warning(f"no first proof can be made: {error}")
        self._trouble = str(error)

    async def step(self, proofs: Proofs, stop: asyncio.Event) -> None:
        """Compares the first flow that is due, if any. Raises the errors of the control database."""
        for flow, epoch in self._steady:
            job = self._jobs.get(flow)
            if job is None or not await self._is_due(proofs, flow, epoch):
                continue
            tries = self._tries[flow, epoch]
            self._said(News(flow, "running"))
            outcome = await self._compare(job, stop)
            if not stop.is_set():
                self._judge(flow, tries, outcome)
            return

    async def _is_due(self, proofs: Proofs, flow: str, epoch: int) -> bool:
        tries = self._tries.get((flow, epoch))
        if tries is None:
            since_us = await asyncio.to_thread(proofs.seen_us, flow, epoch, now_us())
            tries = self._tries[flow, epoch] = _Tries(since_us)
        if tries.over or self._clock_s() < tries.not_before_s:
            return False
        known = (await asyncio.to_thread(proofs.known)).get(flow)
        tries.over = known is not None and known.began_us >= tries.since_us
        return not tries.over

    def _judge(self, flow: str, tries: _Tries, outcome: Outcome) -> None:
        if outcome.verdict in PROVED:
            tries.over = True
            self._said(News(flow, _word(outcome.verdict), run=outcome.run))
            return
        if tries.failed == len(RETRIES_S):
            tries.over = True
            again = f"not tried again: `tailrace reconcile {flow}`"
        else:
            tries.not_before_s = self._clock_s() + RETRIES_S[tries.failed]
            again = f"tried again in {RETRIES_S[tries.failed]:.0f} s"
        tries.failed += 1
        self._said(News(flow, "failed", f"{outcome.reason}\n  -> {again}", outcome.run))


def first_jobs(config: Config) -> dict[str, Job]:
    """By flow: those that can be compared, each as the job that the config has for it."""
    if not config.defaults.first_proof:
        return {}
    jobs = [
        job for job in jobs_of(config, []) if not job.refused and job.flow is config.flows.get(job.flow.name)
    ]
    return {job.flow.name: job for job in jobs if job.flow.write != "append"}


def ready(status: Status) -> list[tuple[str, int]]:
    """Flows whose first copy is applied, or nearly, and the epoch of their sources; of a derived flow that of
    its processor."""
    sources = {f"capture:{source['name']}": source for source in status.sources}
    processors = {f"process:{each['name']}": each for each in status.processors}
    found = []
    for flow in status.flows:
        before = [sources[part] for part in flow["way"] if part in sources]
        by = [processors[part] for part in flow["way"] if part in processors]
        if not before or any(s["state"] != State.STREAMING or s["snapshot"] for s in before):
            continue
        if any(each["state"] != State.STREAMING for each in by):
            continue
        epoch = (by or before)[-1]["epoch"]
        runs = [run["run"] for s in before for run in s["backfills"] if run["state"] in _GOING_ON]
        behind = flow["lag_s"] is None or flow["lag_s"] > BEHIND_S
        if epoch is None or behind or not flow["partitions"]:
            continue
        if any(run.startswith(_COPIES) for run in runs):
            continue
        if flow["state"] in _READY:
            found.append((flow["name"], int(epoch)))
    return found


def _word(verdict: str) -> Literal["equal", "drift", "repaired"]:
    return "equal" if verdict == "equal" else "drift" if verdict == "drift" else "repaired"
