"""The URL of a `kind: sql` target: which databases there are, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.targets.registry import make_target
from streamer.config import Config, SqlTarget, notes, parse, sqlite_path, unbuilt_flow, unbuilt_target
from streamer.errors import ConfigError

TEXT = """
name: acme
sources: {{shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"*.*": {{}}}}}}}}
targets: {{lite: {{kind: sql, url: "{url}"}}}}
flows:
  {flows}
"""
FLOW = 'mirror: {from: "shop.public.*", to: lite}'


def config(url: str, *flows: str, path: str = "/etc/acme/tailrace.yaml") -> Config:
    return parse(TEXT.format(url=url, flows="\n  ".join(flows or (FLOW,))), Path(path), environ={})


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///copy.db", "/etc/acme/copy.db"),
        ("sqlite:///./data/copy.db", "/etc/acme/data/copy.db"),
        ("sqlite+pysqlite:///copy.db", "/etc/acme/copy.db"),
        ("sqlite:////var/lib/copy.db", "/var/lib/copy.db"),
        ("sqlite:///with space #1.db", "/etc/acme/with space #1.db"),
    ],
)
def test_a_relative_file_is_beside_the_config(url: str, file: str) -> None:
    found = config(url)
    target = found.targets["lite"]
    assert isinstance(target, SqlTarget)
    assert sqlite_path(target.url) == Path(file)
    assert unbuilt_target(target) == []
    assert unbuilt_flow(found, found.flows["mirror"]) == []


@pytest.mark.parametrize(
    ("url", "what", "fix"),
    [
        ("", "is empty", "sqlite:///copy.db"),
        ("copy.db", "is not a database URL", "sqlite:///copy.db"),
        ("sqlite://", "in memory", "kind: memory"),
        ("sqlite:///:memory:", "in memory", "kind: memory"),
        ("sqlite://copy.db", "has no host", "sqlite:///copy.db"),
        ("sqlite:///copy.db?mode=ro", "takes no options", "remove what stands behind"),
        ("sqlite+aiosqlite:///copy.db", "the driver 'aiosqlite'", "Python's own driver"),
        ("postgresql://u:hunter2@h/d", "no sql target for 'postgresql'", "kind: postgres"),
        ("redis://u:hunter2@h/0", "no sql target for 'redis'", "kind: redis"),
        ("oracle://u:hunter2@h/d", "no sql target for 'oracle'", "known here: sqlite"),
        ("sqlit:///copy.db", "no sql target for 'sqlit'", "did you mean 'sqlite'?"),
    ],
)
def test_a_url_that_will_not_do_is_refused_when_the_file_is_read(url: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(url)
    text = str(caught.value)
    assert "targets.lite.url" in text
    assert what in text
    assert fix in text
    assert "hunter2" not in text


@pytest.mark.parametrize("backend", ["mysql", "mariadb"])
def test_what_comes_next_is_refused_by_name_where_it_is_used(backend: str) -> None:
    found = config(f"{backend}+pymysql://u:hunter2@h/d")
    (unbuilt,) = unbuilt_target(found.targets["lite"])
    assert str(unbuilt) == (
        f"targets.lite.url: a sql target in {backend} is not built yet;"
        " write url: sqlite:///FILE, or kind: postgres with a Postgres database"
    )
    assert [each.path for each in unbuilt_flow(found, found.flows["mirror"])] == ["flows.mirror.to"]
    with pytest.raises(ConfigError, match=backend):
        make_target(found.targets["lite"], "acme.lite", [])


def test_two_flows_to_one_name_are_refused_whatever_the_schema() -> None:
    one = "one: {from: shop.public.people, to: lite.a.People}"
    two = "two: {from: shop.crm.people, to: lite.b.people}"
    with pytest.raises(ConfigError, match=r"the flows 'one' and 'two' both write lite\.main\.people"):
        config("sqlite:///copy.db", one, two)


def test_a_schema_that_is_left_out_is_said() -> None:
    flows = 'one: {from: "shop.public.*", to: lite.mirror}', "two: {from: shop.crm.x, to: lite.main.y}"
    assert notes(config("sqlite:///copy.db", flows[0])) == [
        "flows.one.to: SQLite has no schemas: 'mirror' is left out, and tables are named as in the source"
    ]
    assert notes(config("sqlite:///copy.db", flows[1])) == []
