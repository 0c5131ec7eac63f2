"""`tailrace reconcile` in tests: its report, checked against the documented schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from tests.harness.pipeline import REPO, Pipeline

SCHEMA = REPO / "docs" / "reconcile.schema.json"
KINDS = ("missing", "extra", "different")


async def reconcile(pipeline: Pipeline, *words: str, timeout_s: float = 60.0) -> tuple[int, dict[str, Any]]:
    """(exit code, report), which fits the documented schema."""
    code, out = await pipeline.run("reconcile", *words, "--json", timeout_s=timeout_s)
    assert out.startswith("{"), out
    assert out.endswith("}\n"), (code, len(out), out[-1000:])
    report: dict[str, Any] = json.loads(out)
    jsonschema.validate(report, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert report["exit_code"] == code
    return code, report


async def proved(pipeline: Pipeline, *words: str) -> dict[str, Any]:
    """Wait until all is equal; the report."""
    found: dict[str, Any] = {}

    async def check() -> bool:
        nonlocal found
        code, found = await reconcile(pipeline, *words, "--wait", "10s")
        return code == 0

    await pipeline.until("reconcile finds all equal", check)
    return found


def samples(report: dict[str, Any]) -> set[tuple[str, ...]]:
    """(kind, key...) of each sample of drift, of all tables."""
    return {
        (sample["kind"], *sample["key"])
        for table in report["tables"]
        for sample in table["samples"]
        if sample["kind"] in KINDS
    }


def counts(table: dict[str, Any]) -> dict[str, int]:
    """Those that are not 0."""
    names = (*KINDS, "in_flight", "parked", "held", "unusable")
    return {name: table[name] for name in names if table[name]}


def sqlite_target(file: Path) -> dict[str, Any]:
    return {"kind": "sql", "url": f"sqlite:///{file}"}
