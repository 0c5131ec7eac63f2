"""Keys of a Redis target: their templates, and what a config may say about them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import Config, parse, unbuilt_flow
from streamer.config.key_template import joined, parse_template
from streamer.errors import ConfigError

VALUES = st.text(alphabet="ab:%-235ACé", max_size=6)
TEMPLATES = ["{a}:{b}", "x{a}::{b}y", "{a}-%{b}", "{a}-{b}%", "k:{a}é{b}", "{a}A{b}", "{a}C{b}", "{a}b%25{b}"]


@pytest.mark.parametrize("text", TEMPLATES)
@given(one=st.tuples(VALUES, VALUES), other=st.tuples(VALUES, VALUES))
def test_two_rows_never_have_one_key(text: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    template = parse_template(text)
    assert (template.tail(one) == template.tail(other)) == (one == other)
    assert template.values(template.prefix + template.tail(one)) == list(one)


def test_a_key_of_one_column_is_its_value_as_it_is() -> None:
    template = parse_template("user:{id}:{{x}}")
    assert (template.prefix, template.names) == ("user:", ("id",))
    assert template.prefix + template.tail(["a:%b"]) == "user:a:%b:{x}"
    assert joined("s:t:", ["a", "b"]).tail(["1:2", "3:4"]) == "1%3A2:3:4"


def test_what_is_encoded_is_what_would_be_ambiguous() -> None:
    assert parse_template("{a}:{b}").tail(["x-y", "1:2"]) == "x-y:1:2"
    assert parse_template("{a}é{b}").tail(["é", "é"]) == "%C3%A9éé"


def config_of(*flows: dict[str, Any]) -> Config:
    text = {
        "name": "acme",
        "sources": {"shop": {"kind": "postgres", "url": "postgresql://u@h/d", "tables": {"public.*": {}}}},
        "targets": {"cache": {"kind": "redis", "url": "redis://h/0"}},
        "flows": {
            f"f{number}": {"from": f"shop.public.t{number}", "to": "cache", **flow}
            for number, flow in enumerate(flows)
        },
    }
    return parse(json.dumps(text), environ={})


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ({"as": "stream"}, "hash"),
        ({"as": "zset", "score": "n"}, "needs the column of its members"),
        ({"as": "zset", "member": "id"}, "needs the column of its scores"),
        ({"as": "set"}, "needs the column of its members"),
        ({"member": "id"}, "only a zset or a set has members"),
        ({"as": "set", "member": "id", "score": "n"}, "only a zset has scores"),
        ({"as": "set", "member": "id", "ttl": "1h"}, "lets no member"),
        ({"as": "set", "member": "id", "delete": "soft(gone)"}, "no place for soft(gone)"),
        ({"as": "set", "member": "id", "write": "append"}, "keeps rows, not members"),
        ({"key": "user:{id"}, "belongs to no column"),
        ({"key": "{a}{b}"}, "nothing between"),
        ({"key": "{a}%{b}"}, "has '%' behind {a}"),
        ({"key": "{a}2{b}"}, "has '2' behind {a}"),
        ({"key": "_tailrace:{a}"}, "Tailrace's own"),
        ({"key": "user:{id}", "from": "shop.public.*"}, "would mix them up"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(flow: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(flow)
    assert words in str(caught.value)
    assert "f0" in str(caught.value)
    assert "->" in str(caught.value)


def test_two_flows_never_write_the_same_keys() -> None:
    config_of({"key": "user:{id}"}, {"key": "client:{id}"}, {"to": "cache.a.b"}, {"to": "cache.a.c"})
    with pytest.raises(ConfigError, match="the same keys"):
        config_of({"key": "user:{id}"}, {"key": "user:{other}"})
    with pytest.raises(ConfigError, match="one table has one writer"):
        config_of({"to": "cache.a.b"}, {"to": "cache.a.b"})


def test_what_is_built_of_a_redis_flow() -> None:
    given = {"as": "json", "key": "u:{id}", "ttl": "1d", "columns": {"a": "b"}, "unmapped": "ignore"}
    modes = {"write": "insert_only", "delete": "soft(gone)", "truncate": "hold", "version": "side"}
    config = config_of({**given, **modes}, {"version": "none"}, {"as": "set", "member": "id"})
    assert unbuilt_flow(config, config.flows["f0"]) == []
    assert [found.path for found in unbuilt_flow(config, config.flows["f1"])] == ["flows.f1.version"]
    assert unbuilt_flow(config, config.flows["f2"]) == []
    assert config.targets["cache"].batch.rows == 500
