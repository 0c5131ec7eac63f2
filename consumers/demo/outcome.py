"""The demo's result: what `--json` prints and the panel shows, and whether it counts as passed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from consumers.demo.tally import Latency
from consumers.demo.verdict import Verdict


@dataclass(slots=True)
class Outcome:
    """`kills` are SIGKILLs sent, `restarts` the processes seen working again afterwards.

    `total_s` is from the command's start to the verdict, `startup_s` the part of it before the shop opens.
    """

    seed: int
    seconds: float
    verdict: Verdict = field(default_factory=lambda: Verdict(()))
    transactions: int = 0
    changes: int = 0
    big_rows: int = 0
    truncates: int = 0
    peak_rate: float = 0.0
    steady: Latency | None = None
    overall: Latency | None = None
    kills: int = 0
    restarts: int = 0
    catch_up_s: float = 0.0
    startup_s: float = 0.0
    total_s: float = 0.0
    advice: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Equal, and it has been through what the demo is there to show."""
        return self.verdict.equal and not self.shortfalls()

    def shortfalls(self) -> list[str]:
        """What was to happen and did not."""
        found = []
        if self.kills < 2:
            found.append(f"{self.kills} processes were killed, 2 were to be")
        if self.restarts < self.kills:
            found.append(f"{self.restarts} of {self.kills} killed processes came back")
        if not self.big_rows:
            found.append("the large transaction was not made")
        if not self.truncates:
            found.append("no table was truncated")
        return found

    def facts(self) -> list[str]:
        rate = self.changes / self.seconds if self.seconds else 0.0
        peak = f", at most {self.peak_rate:,.0f}/s" if self.peak_rate else ""
        lines = [
            f"events       {self.changes:,} in {self.transactions:,} transactions, {rate:,.0f}/s{peak};"
            f" one transaction of {self.big_rows:,} rows, {self.truncates} TRUNCATE",
            f"latency      commit to target: {_latency(self.steady)} in the quiet first part;"
            f" {_latency(self.overall)} with the large transaction and the kills",
            f"kills        {self.kills} by SIGKILL, {self.restarts} restarts survived;"
            f" caught up {self.catch_up_s:.1f} s after the last change",
            f"time         {self.total_s:.0f} s in all, {self.startup_s:.0f} s of them to start everything;"
            f" seed {self.seed}",
        ]
        return [*lines, *(f"MISSED       {text}" for text in self.shortfalls())]

    def plain(self) -> dict[str, Any]:
        """For --json."""
        raw = asdict(self)
        for table, found in zip(raw["verdict"]["tables"], self.verdict.tables, strict=True):
            table["equal"] = found.equal
        return {"equal": self.verdict.equal, "passed": self.passed, "shortfalls": self.shortfalls(), **raw}


def _latency(latency: Latency | None) -> str:
    return f"p50 {latency.p50_ms:,.0f} ms, p99 {latency.p99_ms:,.0f} ms" if latency else "not measured"
