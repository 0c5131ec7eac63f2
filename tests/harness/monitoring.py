"""The files for Prometheus and Grafana, and which metrics and labels they use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml

CONFIG = Path(__file__).parents[2] / "config"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((CONFIG / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]

RULE_TESTS: list[dict[str, Any]] = yaml.safe_load(
    (CONFIG / "prometheus" / "alerts.test.yaml").read_text(encoding="utf-8")
)["tests"]

_USED = re.compile(r"\b(tailrace_[a-z_0-9]+)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)(?:=~|!~|!=|=)"([^"]*)"')
_BY = re.compile(r"\b(?:by|without) \(([^)]*)\)")
_SHOWN = re.compile(r"\$labels\.([a-z_]+)|\{\{([a-z_]+)\}\}")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((CONFIG / "grafana" / "tailrace.json").read_bytes())
    return found


def queries() -> Iterator[tuple[str, str]]:
    """(expression, legend) of the dashboard's panels."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def expressions() -> Iterator[tuple[str, set[str]]]:
    """Of rules and panels: (expression, labels that its texts show or that it groups by)."""
    for rule in RULES:
        yield rule["expr"], _labels(rule["expr"], " ".join(rule["annotations"].values()))
    for expression, legend in queries():
        yield expression, _labels(expression, legend)


def _labels(expression: str, text: str) -> set[str]:
    grouped = {label.strip() for labels in _BY.findall(expression) for label in labels.split(",")}
    return grouped | {one or other for one, other in _SHOWN.findall(text)}


def labels_used(expression: str) -> dict[str, dict[str, set[str]]]:
    """By metric the labels that it is chosen by, with the values that are named."""
    found: dict[str, dict[str, set[str]]] = {}
    for metric, matchers in _USED.findall(expression):
        labels = found.setdefault(metric, {})
        for label, value in _MATCHER.findall(matchers):
            labels.setdefault(label, set()).update(() if "$" in value else value.split("|"))
    return found
