"""Secrets stay out of the log; metrics say what the heartbeat says."""

from __future__ import annotations

import io
import logging
import urllib.request
from collections.abc import Iterator

import orjson
import pytest

from streamer import logs, metrics
from streamer.errors import ConfigError
from streamer.status import State, StatusWriter


@pytest.fixture
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://bob:hunter2@host/db",
        "postgresql://bob:hunter2@host/db?sslmode=require and redis://:hunter2@h",
        "password=hunter2 host=h",
        "connection failed: password='hunter2'",
        '{"sasl_plain_password": "hunter2"}',
        "token: hunter2",
        "postgresql://bob:p@hunter2@host/db",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert "hunter2" not in logs.redact(text)
    assert logs.REDACTED in logs.redact(text)


def test_ordinary_text_is_left_alone() -> None:
    text = "kafka localhost:9092: no answer; table public.orders, key {id: 5}, user@host:5432/db"
    assert logs.redact(text) == text


@pytest.mark.usefixtures("restore_logging")
def test_json_lines() -> None:
    out = io.StringIO()
    logs.setup("json", stream=out)
    logs.Log("x").warning("lost postgresql://a:hunter2@h/db", password="hunter2", rows=3)
    logging.getLogger("library").info("from %s", "elsewhere")
    logs.Log("x").debug("not shown")
    first, second = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert first["message"] == "lost postgresql://a:***@h/db"
    assert (first["level"], first["password"], first["rows"]) == ("warning", "***", 3)
    assert second["message"] == "from elsewhere"


@pytest.mark.usefixtures("restore_logging")
def test_lines_for_people() -> None:
    out = io.StringIO()
    logs.setup("human", stream=out)
    logs.Log("x").info(
        "100% done", rows=3, table="public.order lines", reason="", state="ok", token="hunter2"
    )
    logging.getLogger("library").warning("at postgresql://a:hunter2@h/db")
    first, second = out.getvalue().splitlines()
    assert (
        first[8:] == " [info     ] 100% done rows=3 table='public.order lines' reason='' state=ok token=***"
    )
    assert second[8:] == " [warning  ] at postgresql://a:***@h/db"


@pytest.mark.usefixtures("restore_logging")
def test_secrets_in_a_traceback() -> None:
    out = io.StringIO()
    logs.setup("human", stream=out)
    try:
        raise ValueError("postgresql://a:hunter2@h/db")
    except ValueError:
        logs.Log("x").exception("failed")
    assert "hunter2" not in out.getvalue()
    assert "ValueError" in out.getvalue()


def scrape(port: int | None) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        body: bytes = answer.read()
    return body.decode()


async def test_capture_metrics_are_the_heartbeat() -> None:
    status = StatusWriter("localhost:1", None, "acme", kind="capture", part_name="shop")
    with metrics.serve(0, lambda: status.record) as port:
        assert "tailrace_capture_lag_bytes" not in scrape(port), "unknown is not zero"
        tables = {f"public.t{n:03}": {"captured": 1} for n in range(metrics.TABLES_LIMIT + 5)}
        status.update(
            state=State.STREAMING,
            detail={"published": 7, "lag_bytes": 3, "lag_s": 0.5, "slot": {"wal_bytes": 9}, "tables": tables},
        )
        text = scrape(port)
    assert 'tailrace_capture_events_total{source="shop"} 7.0' in text
    assert 'tailrace_capture_lag_bytes{source="shop"} 3.0' in text
    assert 'tailrace_slot_wal_bytes{source="shop"} 9.0' in text
    assert 'tailrace_state{part="capture:shop",state="streaming"} 1.0' in text
    assert 'tailrace_state{part="capture:shop",state="waiting"} 0.0' in text
    assert 'tailrace_capture_table_events_total{source="shop",table="other"} 5.0' in text


async def test_apply_and_run_metrics() -> None:
    status = StatusWriter("localhost:1", None, "acme", kind="apply", part_name="warehouse")
    status.update(detail={"flows": {"mirror": {"applied": 5, "guarded": 2, "lag_records": 1, "lag_s": 0.25}}})
    text = "".join(metrics.exposition(status.record))
    assert 'tailrace_apply_rows_total{flow="mirror",target="warehouse"} 5.0' in text
    assert 'tailrace_apply_guarded_total{flow="mirror",target="warehouse"} 2.0' in text
    assert 'tailrace_apply_lag_seconds{flow="mirror",target="warehouse"} 0.25' in text
    run = StatusWriter("localhost:1", None, "acme", kind="run", part_name="acme")
    run.update(
        detail={"parts": {"capture:shop": {"pid": 4, "restarts": 3}, "apply:warehouse": {"pid": None}}}
    )
    text = metrics.exposition(run.record)
    assert 'tailrace_part_up{part="capture:shop"} 1.0' in text
    assert 'tailrace_part_up{part="apply:warehouse"} 0.0' in text
    assert 'tailrace_part_restarts_total{part="capture:shop"} 3.0' in text


def test_weighted_latencies() -> None:
    histogram = metrics.LatencyHistogram()
    histogram.observe("mirror", "total", 0.003, 10)
    histogram.observe("mirror", "total", 1000.0)
    [family] = histogram.collect()
    values = {(s.name.rsplit("_", 1)[1], s.labels.get("le")): s.value for s in family.samples}
    assert values["bucket", "0.002"] == 0
    assert values["bucket", "0.005"] == 10
    assert values["bucket", "300.0"] == 10
    assert values["bucket", "+Inf"] == 11
    assert values["count", None] == 11
    assert values["sum", None] == pytest.approx(1000.03)


async def test_a_port_that_is_taken_is_named() -> None:
    record = StatusWriter("localhost:1", None, "acme", kind="run", part_name="acme").record
    with (
        metrics.serve(0, lambda: record) as port,
        pytest.raises(ConfigError, match=f"(?s){port}.*--metrics-port"),
        metrics.serve(port, lambda: record),
    ):
        pass
    with metrics.serve(-1, lambda: record) as none:
        assert none is None
