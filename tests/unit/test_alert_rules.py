"""Who is told of an event, when again, and when it is over; and the signature that docs/alerts.md checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from consumers.alerts.rules import OPEN, REPEAT, owed
from consumers.alerts.webhook import again_after_s, sign
from consumers.control.feed import RESOLVED, Event, Told
from streamer.config.operations import AlertRule

RULES = [
    AlertRule.model_validate({"when": ["drift", "held"], "to": ["ops", "log"], "repeat": "1h"}),
    AlertRule.model_validate({"when": ["held"], "to": ["ops"], "repeat": "10m"}),
]
MINUTE_US = 60_000_000


def event(rule: str, resolved_us: int | None = None) -> Event:
    return Event(7, rule, "flow mirror", "text", "me", 0, resolved_us)


def told(rule: str, channels: dict[str, Told], at_us: int, resolved_us: int | None = None) -> list[Any]:
    return owed([(event(rule, resolved_us), channels)], RULES, at_us)


def test_each_channel_of_each_rule_is_told_once_and_again_after_the_shortest_repeat() -> None:
    assert told("stale", {}, 0) == []
    assert told("drift", {}, 0) == [(7, "ops", OPEN, 0), (7, "log", OPEN, 0)]
    once = {"ops": Told(1, 0), "log": Told(1, 0)}
    assert told("held", once, 10 * MINUTE_US - 1) == []
    assert told("held", once, 10 * MINUTE_US) == [(7, "ops", REPEAT, 1)]
    assert told("drift", once, 10 * MINUTE_US) == []
    again = {"ops": Told(6, 50 * MINUTE_US), "log": Told(1, 0)}
    assert told("held", again, 60 * MINUTE_US) == [(7, "ops", REPEAT, 6), (7, "log", REPEAT, 1)]


def test_who_was_told_that_it_began_is_told_once_that_it_is_over() -> None:
    assert told("drift", {}, MINUTE_US, MINUTE_US) == []
    known = {"ops": Told(2, 0), "gone": Told(1, 0), "log": Told(1, 0, resolved=True)}
    assert told("drift", known, MINUTE_US, MINUTE_US) == [(7, "ops", RESOLVED, 0), (7, "gone", RESOLVED, 0)]


def test_a_message_is_tried_six_times() -> None:
    waits = [again_after_s(tries) for tries in range(1, 7)]
    assert waits == [5.0, 15.0, 60.0, 300.0, 900.0, None]


def test_the_check_of_a_signature_in_the_documentation_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    body, header = b'{"format":1}', sign("s3cret", b'{"format":1}', 1_000)
    assert found["is_genuine"]("s3cret", header, body, now_s=1_200)
    assert not found["is_genuine"]("other", header, body, now_s=1_200)
    assert not found["is_genuine"]("s3cret", header, body + b" ", now_s=1_200)
    assert not found["is_genuine"]("s3cret", header, body, now_s=1_301), (
        "an old one may be somebody's recording"
    )
    assert not found["is_genuine"]("s3cret", header.replace("t=1000", "t=1200"), body, now_s=1_200)
