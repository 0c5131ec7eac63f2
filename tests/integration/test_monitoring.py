"""Prometheus' rules and Grafana's dashboard use what real processes serve, and the docs list all of it."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.monitoring import expressions, labels_used
from tests.harness.pipeline import Pipeline, execute

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
TIMED = "tailrace_apply_latency_seconds_bucket"
DERIVED = "tailrace_process_lag_records"
AGENT = "from consumers.processors import map_\n\ncopied = map_(dict)\n"
ITEM = ("CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item SELECT generate_series(1, 100)")


@pytest.mark.thorough
async def test_every_metric_and_label_that_they_use_is_served(pipeline: Pipeline) -> None:
    table = f"{pipeline.source}.public.item"
    pipeline.config["control"] = {"http": "127.0.0.1:0"}
    pipeline.config["schedules"] = {
        "jobs": {"again": {"backfill": table, "every": "1h", "stale_after": "1d"}}
    }
    pipeline.config["processors"] = {
        "copied": {"agent": "copied:copied", "in": [table], "out": f"{pipeline.name}_copied"}
    }
    (pipeline.folder / "copied.py").write_text(AGENT)
    pipeline.write_config()
    await execute(pipeline.source_url, *ITEM)
    run = pipeline.start("run")
    served: dict[str, dict[str, set[str]]] = {}

    async def all_is_served() -> bool:
        served.clear()
        served.update(await scraped(pipeline))
        done = "1.0" in served.get("tailrace_job_last_success", {}).get("value", ())
        return done and {"tailrace_flow_proof_seconds", "tailrace_backfill_rows", DERIVED, TIMED} <= {*served}

    await pipeline.state("capture", "streaming")
    await execute(pipeline.source_url, "INSERT INTO item VALUES (101)")
    await pipeline.until("the job, its backfill, the first proof and a latency are seen", all_is_served)
    await pipeline.until("the past of the flow is kept", lambda: _is_kept(pipeline))
    assert await run.stop() == 0

    for expression, shown in expressions():
        used = labels_used(expression)
        assert used, expression
        for metric, labels in used.items():
            assert metric in served, f"{metric}: {expression}"
            assert {*labels} <= {*served[metric]}, expression
            for label, values in labels.items():
                assert values <= served[metric][label], expression
            assert shown <= {*served[metric]}, expression

    listed = dict(re.findall(r"^\| [a-z]+ \| `(tailrace_[a-z_]+)` \| ([a-z, ]+) \|", PAGE.read_text(), re.M))
    for metric, labels in served.items():
        name = re.sub(r"_(bucket|count|sum)$", "", metric) if "latency" in metric else metric
        assert name in listed, metric
        assert {*labels} - {"le", "value"} == {*listed[name].split(", ")}, metric


async def scraped(pipeline: Pipeline) -> dict[str, dict[str, set[str]]]:
    """By metric its labels with their values, of all processes and the page;`value`: of its samples."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    urls = []
    for record in await pipeline.status():
        if record.metrics_port is not None:
            urls.append(f"http://127.0.0.1:{record.metrics_port}/metrics")
        if "page" in record.detail:
            urls.append(f"{record.detail['page']}metrics")
    for url in urls:
        for family in text_string_to_metric_families(await asyncio.to_thread(_get, url)):
            for sample in family.samples:
                _note(found[sample.name], sample)
    return found


def _note(labels: dict[str, set[str]], sample: Any) -> None:
    for label, value in sample.labels.items():
        labels[label].add(value)
    labels["value"].add(str(sample.value))


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


async def _is_kept(pipeline: Pipeline) -> bool:
    (page,) = (record.detail["page"] for record in await pipeline.status("serve"))
    past = orjson.loads(await asyncio.to_thread(_get, f"{page}api/flows/mirror/history?hours=1&points=361"))
    return past["step_s"] == 10 and any(lag_s is not None for lag_s in past["lag_s"])
