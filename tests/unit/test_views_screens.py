"""Status and lag as a screen: widths, columns, figures, texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers import screens, views
from streamer.config import Config, parse
from tests.harness.statuses import CONFIG, apply, build, capture, text


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


def test_eighty_columns_cut_no_header_and_no_figure(config: Config) -> None:
    """The tables leave columns out instead."""
    times = {f"{stage}{p}": 123.4 for stage in ("", "capture_", "kafka_", "apply_") for p in ("p50", "p99")}
    status = build(config, capture(), apply({"applied": 1_234_567, "latency_ms": times}))
    shown = text(status, width=80)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    for word in ("mirror", "streaming", "1,234,567", "POSITION", "BEHIND", "SLOT KEEPS", "123 / 123"):
        assert word in shown
    wide = text(status, width=140)
    for word in ("EPOCH", "warehouse.mirror", "TOTAL ms", "LAG s"):
        assert word in wide


def test_a_long_finding_is_folded_below_its_first_word(config: Config) -> None:
    reason = "the slot is gone " * 12 + "\n  -> " + "make it again, " * 10
    ill = capture(state="error", reason=reason), apply(state="error", reason=reason)
    above, _, _ = text(build(config, *ill), width=80).partition("FLOW")
    lines = above.splitlines()
    marks = [n for n, line in enumerate(lines) if "✗" in line]
    assert [lines[n].index("✗") for n in marks] == [0, 2]
    assert all(line.startswith("  ") for n, line in enumerate(lines) if n and line.strip())
    assert all(line.startswith("    ") for line in lines[marks[1] + 1 :] if line.strip())


def _places(count: int, behind: int) -> list[dict[str, Any]]:
    return [
        {
            "topic": f"shop.public.{'very_' * 6}long_name_of_a_table_{n // 2}_of_many",
            "partition": n % 2,
            "offset": 10,
            "end": 10 + (n if n < behind else 0),
            "lag_records": n if n < behind else 0,
            "lag_s": float(n) if n < behind else 0.0,
        }
        for n in range(count)
    ]


def test_the_lag_is_one_screen_with_the_worst_first(config: Config) -> None:
    status = build(config, capture(), apply({"partitions": _places(160, 21)}))
    console = Console(width=140, record=True, file=io.StringIO(), color_system=None)
    console.print(screens.lag_screen(status, views.lag(status)))
    lines = console.export_text().splitlines()
    assert len(lines) < 24
    rows = [line.split() for line in lines if line.startswith("mirror") and "shop.public" in line]
    assert len(rows) == screens.PARTITIONS_LIMIT
    assert [int(row[5]) for row in rows] == list(range(20, 10, -1))
    assert any(
        "... and 10 more behind and 140 partitions at their end; --json has all" in line for line in lines
    )
    assert len(views.lag(status)["flows"][0]["partitions"]) == 160
    well = build(config, capture(), apply({"partitions": _places(3, 0)}))
    assert "3 partitions at their end; --json has all" in text(well)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0.0"), (0.04, "0.0"), (99.94, "99.9"), (99.96, "100"), (183_000.4, "183,000")],
)
def test_a_figure_of_a_column(value: float | None, shown: str) -> None:
    assert screens.figure(value) == shown


def test_a_column_has_one_unit_whatever_its_figures_are(config: Config) -> None:
    """Milliseconds of the quiet minute and of the one after an outage, seconds and hours of lag."""
    for latency_ms, lag_s, times, lag in (
        (4.2, 0.3, "4.2 / 4.2", "0.3"),
        (95e3, 7265.0, "95,000 / 95,000", "7,265"),
    ):
        status = build(
            config, capture(), apply({"lag_s": lag_s, "latency_ms": {"p50": latency_ms, "p99": latency_ms}})
        )
        console = Console(width=140, record=True, file=io.StringIO(), color_system=None)
        console.print(screens.lag_screen(status, views.lag(status)))
        header, row = [
            line for line in console.export_text().splitlines() if line.startswith(("FLOW", "mirror"))
        ][:2]
        assert header.split("  ")[0] == "FLOW"
        assert [header.count(unit) for unit in (" ms", " s")] == [4, 1]
        assert times in row
        assert lag in row.split()
        assert views.lag(status)["flows"][0]["lag_s"] == lag_s


def test_long_names_are_cut_where_they_stay_apart() -> None:
    names = [f"{'a' * 20}{n}{'b' * 20}" for n in (1, 2)] + [
        "short",
        f"{'x' * 30}_orders",
        f"{'x' * 30}_people",
    ]
    found = screens.short_names(names, 24)
    assert len(set(found.values())) == len(names)
    assert found["short"] == "short"
    orders = found[names[3]]
    assert len(orders) == 24
    assert orders.startswith("xx")
    assert orders.endswith("_orders")
    assert "…" in orders


def test_the_lag_view(config: Config) -> None:
    found = views.lag(build(config, capture(), apply()))
    [flow] = found["flows"]
    assert flow["total"] == {"p50_ms": 5.0, "p99_ms": 9.0}
    assert flow["capture"] == {"p50_ms": 1.0, "p99_ms": 2.0}
    assert flow["kafka"] == {"p50_ms": None, "p99_ms": None}
    assert flow["partitions"][0]["lag_records"] == 4


def test_markup_in_a_reason_is_text(config: Config) -> None:
    assert "[/nope]" in text(build(config, capture(state="waiting", reason="broken [/nope] [red]"), apply()))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h"), (90_061, "1d 1h")],
)
def test_durations(value: float | None, shown: str) -> None:
    assert views.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**41, "2.0 TiB")],
)
def test_sizes(value: int | None, shown: str) -> None:
    assert views.size(value) == shown
