"""config/prometheus and config/grafana are whole: rules wait and say what to do, panels show something."""

from __future__ import annotations

import re

import typer

from consumers.cli import app
from tests.harness.monitoring import RULE_TESTS, RULES, dashboard, expressions, labels_used, queries


def test_every_rule_waits_and_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 10
    for rule in RULES:
        assert re.fullmatch(r"[0-9]+[smh]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {*rule["annotations"]} == {"summary", "description"}
        assert re.search(r"`tailrace |restart|Look at", rule["annotations"]["description"]), rule["alert"]


def test_every_rule_is_tried_for_promtool() -> None:
    """Each has a case in which it fires, and series that it reads in the one in which nothing does."""
    fired = {
        str(sample["labels"]).partition('alertname="')[2].partition('"')[0]
        for case in RULE_TESTS
        for tried in case["promql_expr_test"]
        for sample in tried["exp_samples"]
    } - {""}
    assert fired == {rule["alert"] for rule in RULES}
    well = {name for series in RULE_TESTS[0]["input_series"] for name in labels_used(series["series"])}
    assert well == {name for rule in RULES for name in labels_used(rule["expr"])}


def test_the_commands_that_rules_name_are_there() -> None:
    command = typer.main.get_command(app)
    for rule in RULES:
        for words in re.findall(r"`tailrace ([^`]+)`", rule["annotations"]["description"]):
            found = command
            for word in words.split():
                if not hasattr(found, "commands"):
                    break
                assert word in found.commands, f"{rule['alert']}: tailrace {words}"
                found = found.commands[word]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    found = dashboard()
    panels = found["panels"]
    assert {variable["name"] for variable in found["templating"]["list"]} == {"datasource", "flow"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEF"[: len(panel["targets"])]]
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))


def test_metrics_and_labels_are_found_in_expressions() -> None:
    text = 'sum by (le, flow) (rate(tailrace_a_bucket{flow=~"$flow",stage!="x|y"}[5m])) / tailrace_b > 0'
    assert labels_used(text) == {
        "tailrace_a_bucket": {"flow": set(), "stage": {"x", "y"}},
        "tailrace_b": {},
    }
    assert len(list(expressions())) == len(RULES) + len(list(queries()))
