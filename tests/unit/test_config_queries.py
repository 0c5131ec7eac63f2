"""A flow that a reconcile job has in place: from a query to a table that somebody else keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.commands.run import refusals
from consumers.reconcile.job import jobs_of
from consumers.views import expected_parts
from streamer.config import Config, is_only_compared, parse, unbuilt_sections
from streamer.errors import ConfigError

TEXT = """
name: acme
sources:
  shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}
  links: {{kind: query, on: shop, key: [id], sql: SELECT 1 AS id, dirty: {{public.a: id}}}}
targets:
  copy: {{kind: postgres, url: "postgresql://u@h/d"}}
  cache: {{kind: redis, url: "redis://h"}}
flows:
  mirror: {{from: shop.public.*, to: copy.mirror}}
reconcile:
  links: {{flow: {{{flow}}}, threshold: 1%, repair: {{mode: plan}}}}
"""


def config(flow: str) -> Config:
    return parse(TEXT.format(flow=flow), Path("tailrace.yaml"), environ={})


def test_it_is_a_job_beside_the_flows() -> None:
    asked = config("from: links, to: copy.public.entries")
    assert unbuilt_sections(asked) == []
    mirror, links = jobs_of(asked, [])
    assert (mirror.name, links.name, links.refused, links.threshold) == ("mirror", "links", "", 0.01)
    assert (links.flow.source, links.flow.place("", "links")) == ("links", ("public", "entries"))
    assert [job.flow for job in jobs_of(asked, ["links"])] == [links.flow]


def test_a_query_that_is_only_compared_is_no_refusal() -> None:
    asked = config("from: links, to: copy.public.entries")
    assert refusals(asked) == []
    assert expected_parts(asked) == ["capture:shop", "apply:copy"]
    assert is_only_compared(asked, asked.sources["links"])
    raw = TEXT.replace("mirror: {{from: shop.public.*", "mirror: {{from: links")
    stopped = parse(raw.format(flow="from: links, to: copy.public.entries"), environ={})
    assert any("capturing a query is not built yet" in refusal for refusal in refusals(stopped))


@pytest.mark.parametrize(
    ("flow", "path", "words"),
    [
        (
            "from: shop.public.a, to: copy.public.entries",
            "reconcile.links.flow.from",
            "a flow written in place is of a query source, and shop is a postgres source",
        ),
        (
            "from: links, to: cache.public.entries",
            "reconcile.links.flow.to",
            "comparing a query with a redis target is not built yet",
        ),
    ],
)
def test_what_it_cannot_be_stops_its_job_only(flow: str, path: str, words: str) -> None:
    asked = config(flow)
    assert [unbuilt.path for unbuilt in unbuilt_sections(asked)] == [path]
    mirror, links = jobs_of(asked, [])
    assert mirror.refused == ""
    assert words in links.refused
    with pytest.raises(ConfigError, match=path):
        jobs_of(asked, ["links"])


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ("from: links, to: copy.public", "names no table: write target.schema.table"),
        ("from: link, to: copy.public.entries", "there is no source 'link': did you mean 'links'?"),
        ("from: links.a, to: copy.public.entries", "'links.a' does not name what to take: write links"),
        ("from: links, to: copi.public.entries", "there is no target 'copi': did you mean 'copy'?"),
    ],
)
def test_a_mistake_is_named_at_its_place(flow: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(flow)
    text = " ".join(str(caught.value).split())
    assert "reconcile.links.flow" in text
    what, _, fix = message.partition(": ")
    assert what in text
    assert fix in text
