"""The doors of the HTTP API, and its answers to bad input: on a real port, without Kafka."""

from __future__ import annotations

import asyncio
import hmac
import socket
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import orjson
import pytest

from consumers.control.actions import Asked
from consumers.dashboard.auth import Bucket, Keys, Right
from consumers.dashboard.stream import Stream
from tests.harness.dashboard import ADMIN, Served, config_of, serving

REPO = Path(__file__).parents[2]
WAIT_S = 60.0


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """With an admin key and no read key."""
    async with serving(config_of(tmp_path, keys={"admin": ADMIN})) as served:
        yield served


async def test_keys(served: Served) -> None:
    missing = await served.post("/api/jobs/audit/pause", key="")
    wrong = await served.post("/api/jobs/audit/pause", key=ADMIN + "x")
    assert (missing.status_code, wrong.status_code) == (401, 401)
    assert missing.json() == wrong.json()
    assert missing.headers["www-authenticate"] == "Bearer"
    by_bearer = await served.post("/api/jobs/audit/pause")
    assert (by_bearer.status_code, by_bearer.json()["state"]) == (200, "PAUSED")
    by_header = await served.http.post("/api/jobs/audit/resume", headers={"X-Admin-Key": ADMIN})
    assert (by_header.status_code, by_header.json()["state"]) == (200, "WAITING")
    assert (await served.http.get("/api/status")).status_code == 200


def test_a_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both keys, whatever it is: by `compare_digest`, and as many bytes of a digest each time."""
    keys = Keys(config_of(tmp_path, keys={"admin": ADMIN, "read": "reader"}))
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr("consumers.dashboard.auth.hmac.compare_digest", compare)
    given = {"": 0, ADMIN: Right.ADMIN, "reader": Right.READ, f"x{ADMIN[1:]}": 0, f"{ADMIN[:-1]}x": 0, "x": 0}
    for key, right in given.items():
        compared.clear()
        assert keys.right({"x-admin-key": key}) == right
        assert compared == [(32, 32)] * (2 if key else 0), key


async def test_without_an_admin_key_nothing_changes_over_http(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, keys={"read": "reader"}, key_header="X-Ops")) as served:
        refused = await served.post("/api/jobs/audit/run", key="anything")
        assert refused.status_code == 403
        assert "control.keys.admin" in refused.json()["error"]["fix"]
        for path in ("/api/status", "/api/stream", "/metrics", "/api/nothing"):
            assert (await served.http.get(path)).status_code == 401
        assert (await served.http.head("/api/status")).status_code == 401
        assert (await served.http.get("/api/status", headers={"X-Ops": "reader"})).status_code == 200
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/app.js"):
            assert (await served.http.get(path)).status_code == 200


async def test_head_is_answered_as_get_without_the_body(served: Served) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/api/status", "/page/app.js"):
        got, head = await served.http.get(path), await served.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    assert (await served.http.head("/api/nothing")).status_code == 404
    assert (await served.http.head("/api/stream")).status_code == 405


async def test_a_page_of_another_site_changes_nothing(served: Served) -> None:
    key = {"Authorization": f"Bearer {ADMIN}"}
    own = f"http://127.0.0.1:{served.port}"
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": own}, 200),
    ):
        answer = await served.http.post("/api/jobs/audit/pause", headers=key | headers)
        assert answer.status_code == status, headers
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        assert (await served.http.get("/api/status", headers={"Sec-Fetch-Site": site})).status_code == status
    for host, status in (("evil.example", 421), (f"localhost:{served.port}", 200), ("[::1]", 200)):
        assert (await served.http.get("/api/status", headers={"Host": host})).status_code == status
    assert "access-control-allow-origin" not in (await served.http.get("/api/status")).headers


async def test_bad_bodies(served: Served) -> None:
    path, key = "/api/flows/mirror/replay", {"Authorization": f"Bearer {ADMIN}"}
    large = await served.http.post(path, content=b" " * 10 * 2**20, headers=key)
    assert large.status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 2**16

    unsized = await served.http.post(path, content=pieces(), headers=key)
    assert unsized.status_code == 413
    json = key | {"Content-Type": "application/json"}
    malformed = await served.http.post(path, content=b'{"from_start": true,\n "to": }', headers=json)
    assert malformed.status_code == 422
    assert malformed.json()["error"]["where"] == "body, line 2, column 8"
    deep = await served.http.post(path, content=b"[" * 100_000, headers=json)
    assert deep.status_code == 422
    nested = b'{"keys": ' + b"[" * 900 + b"]" * 900 + b"}"
    deep = await served.http.post(path, content=nested, headers=json)
    assert (deep.status_code, deep.json()["error"]["where"]) == (422, "body")
    form = await served.http.post(path, content=b"a=1", headers=key)
    assert form.status_code == 415
    invalid = await served.post(path, {"from_offset": -1, "into": "x"})
    assert invalid.status_code == 422
    places = [problem["where"] for problem in invalid.json()["error"]["problems"]]
    assert places == ["body.from_offset", "body.into"]
    nowhere = await served.post("/api/flows/mirrror/replay")
    assert nowhere.status_code == 404
    assert "mirror" in nowhere.json()["error"]["fix"]
    assert (await served.http.get("/api/reconciles?limit=100000")).status_code == 422
    assert (await served.http.get("/page/../auth.py")).status_code == 404
    assert (await served.http.get("/page/%2e%2e/auth.py")).status_code == 404


async def test_numbers_and_texts_that_nothing_can_have(served: Served) -> None:
    """A command line ends at a NUL: half of what was asked would be done."""
    large = 10**25
    for place, answer in (
        ("path.number", await served.http.get(f"/api/actions/{large}")),
        ("path.number", await served.post(f"/api/actions/{large}/cancel")),
        ("path.number", await served.post(f"/api/overrides/{large}/rollback")),
        ("body.after", await served.post("/api/flows/mirror/replay", {"after": large})),
        ("body.why", await served.post("/api/flows/mirror/pause", {"why": "a\0b"})),
        ("body.table", await served.post("/api/flows/mirror/dead-letters/retry", {"table": "p.orders\0"})),
        ("body.keys.0", await served.post("/api/flows/mirror/replay", {"keys": ["1\n2"]})),
        ("query.flow", await served.http.get("/api/actions?flow=%00")),
    ):
        assert (answer.status_code, answer.json()["error"]["where"]) == (422, place), answer.text
    assert (await served.http.get("/api/actions")).json() == []


async def test_a_bug_is_answered_in_json_and_logged_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served.parts.schedule, "view", None)
    answer = await served.http.get("/api/jobs/audit")
    assert (answer.status_code, answer.json()["error"]["what"]) == (500, "a bug of Tailrace")
    assert "Traceback" not in answer.text
    assert [line.name for line in caplog.records if line.exc_info] == ["dashboard"]


async def test_more_changes_than_a_person_makes_wait(served: Served) -> None:
    passed = 0
    while (last := await served.post("/api/jobs/audit/pause")).status_code == 200:
        passed += 1
    assert passed >= 30
    assert last.status_code == 429
    assert int(last.headers["retry-after"]) >= 1
    guesses = [(await served.post("/api/jobs/audit/run", key=f"guess {n}")).status_code for n in range(35)]
    assert set(guesses) == {401, 429}
    assert (await served.http.get("/api/jobs")).status_code == 200


def test_a_bucket_fills_again() -> None:
    now_s = 0.0
    bucket = Bucket(30, lambda: now_s)
    assert [bucket.take() for _ in range(30)] == [0] * 30
    assert bucket.take() == 2
    now_s = 2.1
    assert bucket.take() == 0
    assert bucket.take() > 0


async def test_a_flow_is_paused_with_a_reason_and_a_trail(served: Served) -> None:
    for body in ({"why": "w" * 201}, {"who": "me"}):
        assert (await served.post("/api/flows/mirror/pause", body)).status_code == 422
    asked = await served.post("/api/flows/mirror/pause", {"why": "the month is closed"})
    assert asked.status_code == 202
    action = asked.json()
    assert action["command"] == "tailrace pause mirror '--why=the month is closed'"
    assert (action["kind"], action["by"]) == ("pause", "http from 127.0.0.1")
    await _ended(served, action["action"])
    resumed = (await served.post("/api/flows/mirror/resume", {})).json()
    assert (resumed["kind"], resumed["command"]) == ("resume", "tailrace resume mirror")
    await _ended(served, resumed["action"])


async def test_what_cannot_be_taken_back_is_foretold_first(served: Served) -> None:
    wish = {"from_start": True, "dry_run": False}
    refused = await served.post("/api/flows/mirror/replay", wish)
    assert refused.status_code == 409
    assert "dry_run" in refused.json()["error"]["fix"]
    assert (await served.post("/api/flows/mirror/replay", {**wish, "after": 99})).status_code == 409
    dry = await served.post("/api/flows/mirror/replay", {"from_start": True, "keys": ["--yes"]})
    assert dry.status_code == 202
    action = dry.json()
    assert action["command"] == "tailrace replay mirror --from-start --key=--yes --dry-run"
    assert (action["dry_run"], action["by"]) == (True, "http from 127.0.0.1")
    again = await served.post("/api/flows/mirror/replay", {"from_start": True, "keys": ["--yes"]})
    assert (again.json()["joined"], again.json()["action"]) == (True, action["action"])
    ended = await _ended(served, action["action"])
    assert ended["exit_code"] == 2  # there is no Kafka
    assert "127.0.0.1:1" in ended["text"]
    assert "hunter2" not in ended["text"]
    late = await served.post(
        "/api/flows/mirror/replay", {**wish, "keys": ["--yes"], "after": action["action"]}
    )
    assert late.status_code == 409
    assert [each["action"] for each in (await served.http.get("/api/actions")).json()] == [action["action"]]


async def test_what_is_asked_for_over_http_is_kept_as_asked_there(served: Served) -> None:
    """By the command itself, too, which the user of the server runs."""
    words = ("config", "set", "schedules.jobs.audit.every", "1h")
    asked = Asked("set", "mirror", "", words, dry_run=False, by="http from 10.0.0.9")
    action, _ = await served.parts.commands.ask(asked, after=None, needs_dry_run=False)
    assert (await _ended(served, action.action))["exit_code"] == 0
    (standing,) = (await served.http.get("/api/overrides")).json()["overrides"]
    assert standing["by"] == "http from 10.0.0.9"


async def _ended(served: Served, number: int) -> dict[str, object]:
    async with asyncio.timeout(WAIT_S):
        while True:
            found: dict[str, object] = (await served.http.get(f"/api/actions/{number}")).json()
            if found["ended_us"] is not None:
                return found


async def test_jobs_are_asked_for_and_shown(served: Served) -> None:
    asked = await served.post("/api/jobs/audit/run")
    assert (asked.status_code, asked.json()) == (202, {"job": "audit", "run": None, "joined": False})
    jobs = (await served.http.get("/api/jobs")).json()
    assert [(job["name"], job["state"]) for job in jobs["jobs"]] == [("audit", "ASKED")]
    assert (await served.http.get("/api/jobs/audit")).json()["history"] == []
    nearest = await served.http.get("/api/jobs/audti")
    assert (nearest.status_code, nearest.json()["error"]["fix"]) == (404, "did you mean 'audit'?")


async def test_readiness_is_progress(served: Served) -> None:
    assert (await served.http.get("/healthz")).json() == {"alive": True}
    ready = await served.http.get("/readyz")
    assert (ready.status_code, len(ready.json()["problems"])) == (503, 2)
    assert (await served.http.get("/api/events")).status_code == 503


async def test_metrics_hold_no_secret(served: Served) -> None:
    text = (await served.http.get("/metrics")).text
    assert 'tailrace_flow_state{flow="mirror",state="UNKNOWN",target="copy"} 1.0' in text
    assert 'tailrace_up{part="serve:acme"' in text
    assert "tailrace_flow_lag_seconds{" not in text  # unknown is no sample
    assert "hunter2" not in text
    assert ADMIN not in text


async def test_docs_and_page_name_no_other_host(served: Served) -> None:
    for path in ("/", "/docs", "/page/app.js", "/page/app.css"):
        answer = await served.http.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "<script>" not in answer.text
    assert "POST /api/flows/{name}/replay" in (await served.http.get("/docs")).text
    assert "from_offset" in (await served.http.get("/docs")).text
    page = await served.http.get("/page/app.js")
    again = await served.http.get("/page/app.js", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304


async def test_the_page_has_its_style_in_it_and_may_have_no_other(served: Served) -> None:
    """Nothing but the page itself is waited for before it is painted."""
    answer = await served.http.get("/")
    style = answer.text.partition("<style>")[2].partition("</style>")[0]
    assert style == (await served.http.get("/page/app.css")).text
    allowed = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'self' 'sha256-{allowed}'" in answer.headers["content-security-policy"]
    assert 'rel="stylesheet"' not in answer.text


async def test_a_viewer_that_does_not_read_is_cut_off_and_nobody_waits(served: Served) -> None:
    stream = served.watch.stream
    stream.slow_s = 1.0  # the other viewer, of this loop, has to be quicker
    frame = orjson.dumps({"x": "y" * 2**20})
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", served.port))
    slow.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    taken = 0
    async with asyncio.timeout(WAIT_S), served.http.stream("GET", "/api/stream") as quick:
        lines = quick.aiter_lines()
        await until(lambda: stream.viewers == 2)
        while stream.dropped == 0 or taken < 3:
            stream.publish(frame)
            async for line in lines:
                if line.startswith("data: "):
                    taken += 1
                    break
        await until(lambda: stream.viewers == 1)
    with slow:
        slow.settimeout(WAIT_S)
        assert await asyncio.to_thread(read_all, slow) < taken * len(frame)
    await until(lambda: stream.viewers == 0)


def read_all(line: socket.socket) -> int:
    """Bytes until the other side has closed."""
    count = 0
    while chunk := line.recv(2**20):
        count += len(chunk)
    return count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the server's memory is looked at from outside
            await asyncio.sleep(0.01)


async def test_a_stream_keeps_the_newest_frame_only() -> None:
    stream = Stream(ping_s=0.01)
    for number in range(5):
        stream.publish(b"%d" % number)
    assert await stream.after(0) == (5, b"id: 5\ndata: 4\n\n")
    assert await stream.after(5) == (5, b": still here\n\n")


def test_the_page_is_packaged() -> None:
    """The wheel has what git does not ignore."""
    files = [str(path) for path in (REPO / "consumers/dashboard/page").rglob("*") if path.is_file()]
    assert any(path.endswith("vendor/uPlot.LICENSE") for path in files)
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=REPO, capture_output=True, check=False)
    assert (ignored.returncode, ignored.stdout) == (1, b"")
