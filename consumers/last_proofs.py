"""The last proof of each flow as a screen shows it: read now and then, and nothing is changed or made.

Of a control database that is not there, or does not answer, nothing is known. What a proof is, and who
writes it, is of reconcile.proofs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from streamer.config import Config
from streamer.errors import ConfigError, RetryableError

if TYPE_CHECKING:
    from consumers.control.database import Database

READ_AGAIN_S = 5.0  # a comparison takes seconds at least


class LastProofs:
    def __init__(
        self,
        config: Config,
        database: Database | None = None,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`database`: the process's, if it has one; it is left open."""
        self._config = config
        self._database = database
        self._clock_s = clock_s
        self._read_s: float | None = None
        self._known: dict[str, dict[str, Any]] = {}

    async def now(self) -> dict[str, dict[str, Any]]:
        """By flow: `run`, `verdict`, `drift`, `rows`, `began_us`, `ended_us`."""
        if self._read_s is None or self._clock_s() - self._read_s >= READ_AGAIN_S:
            self._known = await asyncio.to_thread(self._read)
            self._read_s = self._clock_s()
        return self._known

    def _read(self) -> dict[str, dict[str, Any]]:
        kind, _, file = self._config.control.url.get_secret_value().partition(":///")
        if kind.startswith("sqlite") and not (self._config.base / file).is_file():
            return {}
        from consumers.reconcile.proofs import Proofs  # noqa: PLC0415 - SQLAlchemy takes a quarter of a second

        try:
            with ExitStack() as stack:
                proofs = Proofs(self._config, self._database)
                if self._database is None:
                    stack.callback(proofs.close)
                return {flow: proof.plain() for flow, proof in proofs.known().items()}
        except (ConfigError, RetryableError):  # also: nothing was ever compared
            return self._known
