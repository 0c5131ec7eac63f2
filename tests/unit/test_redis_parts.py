"""Small parts of Redis capture: versions, the journal of gaps, and topics that would collide."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import ConfigFileError, parse
from streamer.redis.journal import GAPS_KEPT, Journal
from streamer.redis.versions import Versions


def test_h21_a_clock_that_goes_back_is_not_followed() -> None:
    versions = Versions(1_000)
    assert versions.take(900, 2) == (1_000, 0)
    assert versions.take(1_000, 1) == (1_000, 2)
    assert versions.take(2_000, 3) == (2_000, 0)
    assert versions.take(2_000, 1) == (2_000, 3)
    assert versions.take(1_500, 1) == (2_000, 4)
    assert versions.micros == 2_000


def test_gaps_are_open_until_they_are_healed() -> None:
    journal = Journal()
    journal.sound_us = 5
    journal.note("flush", "FLUSHALL ran", 7)
    assert journal.unhealed_since_us == 5
    assert [gap.reason for gap in journal.open] == ["flush"]
    journal.healed(9)
    assert journal.unhealed_since_us is None
    assert journal.gaps[0].plain()["healed_us"] == 9
    for _ in range(GAPS_KEPT * 2):
        journal.note("swap", "", 10)
    assert len(journal.gaps) == GAPS_KEPT
    assert journal.seen == 1 + GAPS_KEPT * 2


SOURCE = '{kind: redis, url: "redis://h", entities: {%s}}'
ENTITY = '"%s": {pattern: "a:{id}", type: string}'


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("targets: {game: {kind: memory}}", "the dead letters of target 'game'"),
        (
            'processors: {p: {agent: "a:b", in: [game.dead_letters], out: game.dead_letters, key: [id]}}',
            "'p'",
        ),
    ],
)
def test_two_things_that_would_write_to_one_topic_are_refused(rest: str, words: str) -> None:
    source = SOURCE % (ENTITY % "dead_letters")
    with pytest.raises(ConfigFileError) as caught:
        parse(f"name: acme\nsources: {{game: {source}}}\n{rest}\n", Path("tailrace.yaml"), environ={})
    assert "would share the topic game.dead_letters" in str(caught.value)
    assert words in str(caught.value)
