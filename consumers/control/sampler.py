"""Takes the samples of all flows: looks every LOOK_S, and writes at the end of each step, if it is elected.

One that is not elected looks, too: when it takes over in the middle of a step it has seen all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from consumers.control.downsample import Sample, look, merged
from consumers.control.lease import Lease, LeaseLost
from consumers.control.samples import FINEST, Samples
from consumers.views import Status
from streamer.errors import RetryableError
from streamer.logs import Log

LOOK_S = 2.0  # five looks a step: its worst lag is not only that of its last moment

log = Log("samples")


class Sampler:
    """`status`: what is known at this moment; None: nothing yet, which is a gap and no state."""

    def __init__(self, samples: Samples, lease: Lease, status: Callable[[], Status | None]) -> None:
        self._samples = samples
        self._lease = lease
        self._status = status
        self._seen: dict[str, list[Sample]] = {}
        self._step = 0  # of what has been seen
        self._opened = False
        self._trouble = ""

    async def run(self) -> None:
        """Until cancelled. A control database that is away leaves a gap."""
        while True:
            status = self._status()
            if status is not None:
                await self.turn(status)
            await asyncio.sleep(LOOK_S)

    async def turn(self, status: Status) -> None:
        at_s = status.at_us // 1_000_000
        step = at_s // FINEST.step_s
        seen, ended = self._seen, self._step
        if step != ended:
            self._seen, self._step = {}, step
        for flow in status.flows:
            self._seen.setdefault(flow["name"], []).append(look(flow, at_s))
        if step == ended or not seen or not self._lease.held:
            return
        begin_s = ended * FINEST.step_s
        found = {flow: merged(its, begin_s) for flow, its in seen.items()}
        try:
            with suppress(LeaseLost):
                await asyncio.to_thread(self._write, found, begin_s)
            self._trouble = ""
        except RetryableError as error:
            if str(error) != self._trouble:
                log.error("the past of the flows has a gap", reason=str(error))
            self._trouble = str(error)

    def _write(self, found: dict[str, Sample], begin_s: int) -> None:
        if not self._opened:
            self._samples.open()
            self._opened = True
        self._samples.write(self._lease, found, begin_s)
