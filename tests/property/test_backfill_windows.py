"""Whatever runs beside it and wherever it is killed, a backfill leaves the topic as the table is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.postgres.transactions import Transactions
from streamer.postgres.windows import CREATED, WHOLE, Verdict, Window, Windows
from tests.property.backfill_model import KEYS, STEPS, Game, Rules, Step


def play(steps: list[Step], size: int, rules: type[Rules] = Rules) -> str:
    game = Game(rules, size)
    for step in steps:
        game.step(step)
    game.finish()
    return game.differences()


one_step = st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, KEYS - 1))


@settings(max_examples=600, deadline=None)
@given(steps=st.lists(one_step, max_size=90), size=st.integers(1, 4))
def test_h07_h09_h10_after_a_backfill_the_topic_is_the_table(steps: list[Step], size: int) -> None:
    assert play(steps, size) == ""


@pytest.mark.thorough
@settings(max_examples=20_000, deadline=None)
@given(steps=st.lists(one_step, max_size=150), size=st.integers(1, 4))
def test_h07_h09_h10_after_a_backfill_the_topic_is_the_table_long(steps: list[Step], size: int) -> None:
    assert play(steps, size) == ""


class Nothing(Windows):
    """Rows are published whatever came between."""

    def _judge(self, window: Window) -> Verdict:
        return Verdict("")


class OnlyWhatIsUnseenAtTheMark(Windows):
    """What a poll has seen is thought to be seen by every chunk, also by one that was read before it."""

    def register(self, window: Window) -> None:
        self._waiting.append(window)

    def committed(self, xid: int, commit_lsn: int, commit_us: int) -> int | None:
        waiting, self._waiting = self._waiting, []
        mark = self._mark
        opened = next((w for w in waiting if mark == (w.chunk, True)), None)
        self._waiting = waiting if opened is not None else []
        table = super().committed(xid, commit_lsn, commit_us)
        if opened is None:
            self._waiting = waiting
        else:
            for seen_xid, _ in self._unseen:
                opened.committed(seen_xid)
        return table


class NoUnseen(Windows):
    """A commit before the open mark is thought to show."""

    def register(self, window: Window) -> None:
        super().register(window)
        window.void = ""
        window.early.clear()

    def committed(self, xid: int, commit_lsn: int, commit_us: int) -> int | None:
        table = super().committed(xid, commit_lsn, commit_us)
        for window in (*self._waiting, *self._open.values()):
            window.void = ""
            window.early.clear()
        return table


class NoTruncate(Windows):
    """Rows that a truncate took away come back."""

    def truncated(self, oid: int) -> None:
        pass


class NewKeyOnly(Windows):
    """Of a key change the old key stays in the chunk."""

    def _judge(self, window: Window) -> Verdict:
        changes = list(self.changes[window.oid][window.start :])
        verdict = super()._judge(window)
        old = {a[0] for a, b in pairwise(changes) if b[2] == CREATED and a[2] == WHOLE}
        return verdict._replace(dropped=verdict.dropped - old)


class SeesAll(Windows):
    """The window's snapshot is not asked: every key that changed between the marks is kept."""

    def _judge(self, window: Window) -> Verdict:
        return Verdict(window.void)


class NoPatches(Windows):
    def _judge(self, window: Window) -> Verdict:
        return super()._judge(window)._replace(owed=frozenset())


def recorded(transactions: Transactions, recorded_lsn: int) -> int:
    return recorded_lsn


def seen_only(transactions: Transactions, recorded_lsn: int) -> int:
    limit = transactions.windows.confirm_limit
    return recorded_lsn if limit is None else min(limit, recorded_lsn)


def rules_with(**changed: Any) -> type[Rules]:
    return type("Mutant", (Rules,), changed)


MUTANTS = {
    "nothing is dropped or void": rules_with(windows=Nothing),
    "changed keys are not dropped": rules_with(windows=SeesAll),
    "commits that do not show are forgotten": rules_with(windows=NoUnseen),
    "a poll after the snapshot counts for it": rules_with(windows=OnlyWhatIsUnseenAtTheMark),
    "the confirm goes past what is not seen": rules_with(confirmable=staticmethod(recorded)),
    "a restart confirms before all is shown again": rules_with(confirmable=staticmethod(seen_only)),
    "a truncate voids nothing": rules_with(windows=NoTruncate),
    "the old key of a key change stays": rules_with(windows=NewKeyOnly),
    "keys with a partial event are not read again": rules_with(windows=NoPatches),
}


def random_steps(seed: int) -> tuple[list[Step], int]:
    chosen = random.Random(seed)
    steps = [
        (chosen.choice(STEPS), chosen.randint(0, 5), chosen.randrange(KEYS))
        for _ in range(chosen.randint(20, 120))
    ]
    return steps, chosen.randint(1, 4)


def wrong_seeds(rules: type[Rules], seeds: int) -> Iterator[int]:
    for seed in range(seeds):
        try:
            if play(*random_steps(seed), rules):
                yield seed
        except AssertionError:
            yield seed


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", MUTANTS)
def test_h09_h10_each_rule_is_needed(mutant: str) -> None:
    seed = next(wrong_seeds(MUTANTS[mutant], 20_000), None)
    assert seed is not None, f"nothing goes wrong although {mutant}"
    assert play(*random_steps(seed)) == ""
