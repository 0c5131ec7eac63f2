"""The keys of flows to pgvector: what validates, and the message of every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import Config, VectorTarget, built_flows, parse, unbuilt_flow
from streamer.errors import ConfigError

URL = "postgresql://u:p@h/d"
FLOW = 'text: "{title}", embed: "app.ai:embed", dimensions: 3'


def config_of(flow: str = FLOW, target: str = "", kind: str = "pgvector") -> Config:
    text = f"""\
name: acme
sources: {{shop: {{kind: postgres, url: {URL}, tables: {{"public.*": {{}}}}}}}}
targets: {{copy: {{kind: {kind}, url: {URL}, {target}}}}}
flows: {{notes: {{from: "shop.public.*", to: copy, {flow}}}}}
"""
    return parse(text, Path("/etc/acme/t.yaml"), environ={})


def test_what_a_flow_says_runs() -> None:
    config = config_of(f"{FLOW}, chunk: {{tokens: 40, overlap: 39}}", "embedding: {rate: 10/s, timeout: 5s}")
    assert [flow.name for flow in built_flows(config, "copy")[0]] == ["notes"]
    target = config.targets["copy"]
    assert isinstance(target, VectorTarget)
    assert (target.embedding.texts, target.embedding.rate, target.embedding.timeout_s) == (256, 10, 5)
    assert target.batch.rows == 1000


@pytest.mark.parametrize(
    ("modules", "folder"), [("", "/etc/acme"), ("modules: app", "/etc/acme/app"), ("modules: /opt", "/opt")]
)
def test_modules_are_looked_for_beside_the_file(modules: str, folder: str) -> None:
    target = config_of(target=modules).targets["copy"]
    assert isinstance(target, VectorTarget)
    assert target.modules == Path(folder)


@pytest.mark.parametrize(
    ("flow", "what"),
    [
        ("delete: apply", "flows.notes: copy is of kind pgvector, and the flow says no `text` to embed"),
        ('text: "{title}"', "flows.notes.text: `text` stands without `embed`"),
        ('embed: "a:b"', "flows.notes.embed: `embed` stands without `text`"),
        ("chunk: {tokens: 3}", "flows.notes.chunk: there is no `text` to cut"),
        (
            f"{FLOW}, chunk: {{tokens: 4, overlap: 4}}",
            "flows.notes.chunk.overlap: an overlap of 4 of 4 tokens",
        ),
        (FLOW.replace("{title}", "{title"), "flows.notes.text: has a '{' that belongs to no column"),
        (FLOW.replace("{title}", "title"), "flows.notes.text: names no column"),
        (FLOW.replace("app.ai:embed", "app.ai"), "flows.notes.embed: is not the path of a function"),
        (FLOW.replace("3", "16001"), "flows.notes.dimensions: "),
    ],
)
def test_mistakes_are_named(flow: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(flow)
    assert what in str(caught.value)


def test_no_guard_is_refused_by_name() -> None:
    config = config_of(f"{FLOW}, version: none")
    assert [u.path for u in unbuilt_flow(config, config.flows["notes"])] == ["flows.notes.version"]


def test_another_kind_of_target_has_no_texts() -> None:
    config = config_of(f"{FLOW}, chunk: {{tokens: 3}}", kind="postgres")
    found = unbuilt_flow(config, config.flows["notes"])
    assert {u.path for u in found} == {
        f"flows.notes.{key}" for key in ("text", "chunk", "embed", "dimensions")
    }
    assert all("belongs to a flow to a pgvector target" in str(u) for u in found)
