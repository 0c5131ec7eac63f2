"""Which flow is due for its first proof, and what becomes of tries that come to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from consumers import views
from consumers.comparison import Outcome, outcome_of
from consumers.first_proofs import RETRIES_S, STEADY_S, FirstProofs, News, first_jobs, ready
from consumers.last_proofs import READ_AGAIN_S, LastProofs
from consumers.reconcile.job import Job
from consumers.reconcile.proofs import PROVED, Proof, Proofs, proofs_of
from consumers.reconcile.report import Counts, TableReport
from consumers.screens import status_screen
from consumers.views import Status
from streamer.config import Config, parse
from streamer.status import now_us

TEXT = """
name: acme
sources:
  shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}
targets:
  copy: {{kind: postgres, url: "postgresql://u@h/d"}}
flows:
  mirror: {{from: shop.public.*, to: copy.mirror}}
  orders: {{from: shop.public.orders, to: copy.own.orders}}
  history: {{from: shop.public.orders, to: copy.own.history, write: append}}
reconcile:
  nightly: {{flow: orders, threshold: 1%}}
control: {{url: "sqlite:///{folder}/control.db"}}
{more}
"""


def config(folder: Path, more: str = "") -> Config:
    return parse(TEXT.format(folder=folder, more=more), Path("tailrace.yaml"), environ={})


def status(flow: dict[str, Any] | None = None, source: dict[str, Any] | None = None) -> Status:
    ours = {"name": "shop", "state": "streaming", "snapshot": None, "epoch": 7, "backfills": []}
    theirs = {
        "name": "mirror",
        "from": "shop.public.*",
        "state": "IDLE",
        "lag_s": 0.0,
        "partitions": [{}],
        "way": ["capture:shop", "apply:copy"],
    }
    return Status("acme", 0, [], [ours | (source or {})], [theirs | (flow or {})], [])


def test_a_flow_is_ready_when_its_first_copy_is_applied() -> None:
    assert ready(status()) == [("mirror", 7)]
    assert ready(status({"state": "OK", "lag_s": 3.0})) == [("mirror", 7)]


@pytest.mark.parametrize(
    ("flow", "source"),
    [
        ({"state": "STALLED"}, {}),
        ({"lag_s": 11.0, "state": "OK"}, {}),  # still being filled
        ({"lag_s": None}, {}),
        ({"partitions": []}, {}),  # nothing is known of it yet
        ({}, {"state": "snapshot"}),
        ({}, {"snapshot": {"table": "a"}}),
        ({}, {"epoch": None}),
        ({}, {"backfills": [{"run": "flow:copy.mirror:public.a:7", "state": "running"}]}),
        ({}, {"backfills": [{"run": "table:shop.public.a:7", "state": "paused"}]}),
    ],
)
def test_before_that_it_is_not(flow: dict[str, Any], source: dict[str, Any]) -> None:
    assert ready(status(flow, source)) == []


def test_a_backfill_that_is_over_or_a_persons_own_does_not_matter() -> None:
    over = {"run": "flow:copy.mirror:public.a:7", "state": "done"}
    own = {"run": "20261122T120000-1f3a", "state": "running"}
    assert ready(status(source={"backfills": [over, own]})) == [("mirror", 7)]


def test_flows_that_make_a_copy_are_proved_as_their_jobs(tmp_path: Path) -> None:
    found = first_jobs(config(tmp_path))
    assert {flow: job.name for flow, job in found.items()} == {"mirror": "mirror", "orders": "nightly"}
    assert first_jobs(config(tmp_path, "defaults: {first_proof: false}")) == {}


@pytest.fixture
def proofs(tmp_path: Path) -> Iterator[Proofs]:
    found = Proofs(config(tmp_path))
    found.open()
    yield found
    found.close()


class Rehearsal:
    """The flow `mirror` under a clock of its own; a comparison has the next verdict, and leaves a proof."""

    def __init__(self, folder: Path, proofs: Proofs, *verdicts: str) -> None:
        self.now_s = 0.0
        self.news: list[News] = []
        self.verdicts = list(verdicts)
        self.proofs = proofs
        self.firsts = FirstProofs(
            config(folder), compare=self.compare, said=self.news.append, clock_s=lambda: self.now_s
        )

    async def compare(self, job: Job, stop: asyncio.Event) -> Outcome:
        verdict = self.verdicts.pop(0)
        if verdict in PROVED:
            at_us = now_us()
            self.proofs.note([Proof(job.flow.name, "run-1", verdict, 0.0, 10, at_us, at_us)])
        return Outcome(verdict, "why", "run-1")

    async def step(self, seconds: float, seen: Status | None = None) -> list[str]:
        """What is said once so much time has passed."""
        self.now_s += seconds
        self.firsts.look(seen or status())
        before = len(self.news)
        await self.firsts.step(self.proofs, asyncio.Event())
        return [news.state for news in self.news[before:]]


async def test_a_flow_is_compared_once_an_epoch(tmp_path: Path, proofs: Proofs) -> None:
    rehearsal = Rehearsal(tmp_path, proofs, "equal", "drift")
    assert await rehearsal.step(0) == []
    assert await rehearsal.step(STEADY_S / 2, status({"state": "ERROR"})) == []
    assert await rehearsal.step(STEADY_S) == []  # it was not ready all the while
    assert await rehearsal.step(STEADY_S) == ["running", "equal"]
    assert await rehearsal.step(STEADY_S) == []
    later = status(source={"epoch": 8})
    assert await rehearsal.step(STEADY_S, later) == []
    assert await rehearsal.step(STEADY_S, later) == ["running", "drift"]
    assert await rehearsal.step(STEADY_S, later) == []


async def test_a_proof_of_this_epoch_is_enough_also_for_the_next_process(
    tmp_path: Path, proofs: Proofs
) -> None:
    proofs.seen_us("mirror", 7, 1)
    proofs.note([Proof("mirror", "by hand", "drift", 0.1, 10, 2, 3)])
    rehearsal = Rehearsal(tmp_path, proofs, "equal")
    await rehearsal.step(0)
    assert await rehearsal.step(STEADY_S) == []
    # One that is older than the epoch is none.
    proofs.note([Proof("mirror", "by hand", "equal", 0.0, 10, 0, 3)])
    again = Rehearsal(tmp_path, proofs, "equal")
    await again.step(0)
    assert await again.step(STEADY_S) == ["running", "equal"]


async def test_what_fails_is_tried_again_and_then_left(tmp_path: Path, proofs: Proofs) -> None:
    rehearsal = Rehearsal(tmp_path, proofs, "", "incomplete", "", "error")
    await rehearsal.step(0)
    waits_s = (STEADY_S, *RETRIES_S)
    for wait_s in waits_s:
        assert await rehearsal.step(wait_s - 1) == []
        assert await rehearsal.step(1) == ["running", "failed"]
    assert await rehearsal.step(10_000) == []
    said = [news.reason for news in rehearsal.news if news.state == "failed"]
    assert said[0] == "why\n  -> tried again in 60 s"
    assert said[-1] == "why\n  -> not tried again: `tailrace reconcile mirror`"


def test_an_outcome_is_read_of_the_report_or_else_of_the_log() -> None:
    report = {
        "verdict": "incomplete",
        "run": "r",
        "tables": [{"flow": "f", "source": "s", "reason": "no apply"}],
    }
    assert outcome_of(3, orjson.dumps(report), []) == Outcome("incomplete", "f s: no apply", "r")
    error = orjson.dumps({"error": {"message": "the source does not answer"}}).decode()
    assert outcome_of(2, b"", ["a line", error]) == Outcome("", "the source does not answer")
    assert outcome_of(-9, b"{", [""]).reason == "the comparison ended with exit code -9: no word in its log"


def test_a_flows_proof_is_the_worst_of_its_tables() -> None:
    def table(flow: str, *, missing: int = 0, meant: bool = False, complete: bool = True) -> TableReport:
        counts = Counts(missing)
        return TableReport(
            flow, flow, "public.a", "copy.a", 0.0, complete, meant=meant, source_rows=10, counts=counts
        )

    tables = [
        table("a"),
        table("a", missing=1),
        table("b"),
        table("c", meant=True),
        table("d", complete=False),
    ]
    found = proofs_of(tables, "run", 1, 2)
    assert [(p.flow, p.verdict, p.drift, p.rows) for p in found] == [
        ("a", "drift", 0.1, 20),
        ("b", "equal", 0.0, 10),
    ]


# What `status` shows


@pytest.mark.parametrize(("width", "shown"), [(150, True), (100, True), (50, False)])
def test_a_screen_shows_the_last_proof_and_its_age(tmp_path: Path, width: int, *, shown: bool) -> None:
    proof = Proof("mirror", "run-1", "equal", 0.0, 10, 1, 1_000_000).plain()
    found = views.build(config(tmp_path), [], 121_000_000, {"mirror": proof})
    assert {flow["name"]: flow["proof"] for flow in found.flows}["mirror"] == proof
    assert ("equal 2m ago" in screen_of(found, width)) is shown
    assert not any("not equal" in finding.text for finding in found.findings)


def test_without_a_proof_there_is_no_column(tmp_path: Path) -> None:
    assert "PROOF" not in screen_of(views.build(config(tmp_path), [], 0), 150)


def test_drift_is_a_finding_until_the_next_proof(tmp_path: Path) -> None:
    proof = Proof("orders", "run-1", "drift", 0.1, 10, 1, 1_000_000).plain()
    found = views.build(config(tmp_path), [], 3_601_000_000, {"orders": proof})
    (finding,) = [each for each in found.findings if "not equal" in each.text]
    assert finding.counts
    assert "flow orders was not equal to its source 1h ago" in finding.text
    assert "run run-1\n  -> `tailrace reconcile orders --dry-run`" in finding.text


def screen_of(found: Status, width: int) -> str:
    console = Console(width=width, file=StringIO())
    console.print(status_screen(found))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


async def test_a_screen_makes_no_database_and_reads_one_now_and_then(tmp_path: Path) -> None:
    now_s = 0.0
    last = LastProofs(config(tmp_path), clock_s=lambda: now_s)
    assert await last.now() == {}
    assert not (tmp_path / "control.db").exists()
    proofs = Proofs(config(tmp_path))
    proofs.open()
    proofs.note([Proof("mirror", "run-1", "equal", 0.0, 10, 1, 2)])
    proofs.close()
    assert await last.now() == {}
    now_s = READ_AGAIN_S
    assert (await last.now())["mirror"]["verdict"] == "equal"


async def test_a_control_database_that_cannot_be_read_is_no_trouble_of_a_screen(tmp_path: Path) -> None:
    (tmp_path / "control.db").write_bytes(b"no database" * 100)
    assert await LastProofs(config(tmp_path)).now() == {}
