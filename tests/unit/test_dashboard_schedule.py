"""Schedules over HTTP: changed by who has the key, refused in the words of the file, taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.dashboard import ADMIN, Served, config_of, serving

CHANGE = "/api/jobs/audit/change"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(config_of(tmp_path, keys={"admin": ADMIN})) as served:
        yield served


async def test_a_schedule_is_changed_shown_and_taken_back(served: Served) -> None:
    assert (await served.post(CHANGE, {"key": "every", "value": "1h"}, key="")).status_code == 401
    made = await served.post(CHANGE, {"key": "every", "value": "1h"})
    assert made.status_code == 200
    number, job = made.json()["override"], made.json()["job"]
    assert (job["name"], job["overridden"]) == ("audit", ["every"])
    (standing,) = (await served.http.get("/api/overrides")).json()["overrides"]
    assert (standing["before"], standing["now"]) == ({"at": ["02:00"]}, {"every": 3600.0})
    assert standing["by"].startswith("http from 127.0.0.1")
    assert (await served.post(f"/api/overrides/{number}/rollback")).status_code == 200
    found = (await served.http.get("/api/overrides")).json()
    assert (found["overrides"], [each["override"] for each in found["undone"]]) == ([], [number])
    assert (await served.post(f"/api/overrides/{number}/rollback")).status_code == 409


async def test_what_is_wrong_or_only_the_files_is_refused(served: Served) -> None:
    for body, words in (
        ({"key": "every", "value": "soon"}, "'soon' is not a duration"),
        ({"key": "exec", "value": "os:system"}, "cannot be changed beside the file"),
        ({"key": "on_done", "value": [{"http": "http://h"}]}, "cannot be changed beside the file"),
        ({"key": "after", "value": ["audit"]}, "the job waits for itself"),
        ({"value": "1h"}, "Field required"),
        ({"key": "every", "value": "3000000d"}, "'3000000d' must be 3660d or less"),
        ({"key": "every", "value": "10ms"}, "'10ms' must be 1s or more"),
        ({"key": "stale_after", "value": "999999999999d"}, "'999999999999d' must be 3660d or less"),
        ({"key": "priority", "value": 10**23}, "cannot be kept"),
        ({"key": "priority", "value": True}, "is not a number"),
        ({"key": "cron", "value": "0 6 * * 8"}, "'8' is no weekday: 0 to 7, or sun to sat"),
    ):
        refused = await served.post(CHANGE, body)
        assert (refused.status_code, words in refused.json()["error"]["what"]) == (422, True), body
    assert (await served.post("/api/jobs/adit/change", {"key": "every"})).status_code == 404
    assert (await served.http.get("/api/overrides")).json() == {"overrides": [], "undone": []}


async def test_the_past_of_a_flow(served: Served) -> None:
    served.watch.samples.open()
    found = (await served.http.get("/api/flows/mirror/history?hours=1&points=100")).json()
    assert (found["step_s"], {*found["lag_s"]}) == (40, {None})
    assert len(found["at_us"]) == len(found["state"]) <= 100
    found = (await served.http.get("/api/lag/history")).json()
    assert (found["step_s"], found["flows"]) == (10, {})
    wrong = (
        ("flows/miror/history", 404),
        ("flows/mirror/history?hours=169", 422),
        ("lag/history?seconds=601", 422),
    )
    for query, status in wrong:
        assert (await served.http.get(f"/api/{query}")).status_code == status
