"""What `tailrace replay --into` refuses from the config alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.rebuild_plan import Subject, check_flow, names_of, subject_of
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Config, parse
from streamer.errors import ConfigError

TEXT = """
name: plan
sources: {{shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}}}
targets:
  copy: {{kind: postgres, url: "postgresql://u@h/d"}}
  file: {{kind: sql, url: "sqlite:///copy.db"}}
flows:
  mirror: {{from: "shop.public.*", to: {to}{more}}}
{others}
"""


def config(more: str = "", to: str = "copy.mirror", others: str = "") -> Config:
    return parse(TEXT.format(more=more, to=to, others=others), Path("tailrace.yaml"), environ={})


def record(table: str = "orders", *, key: bool = True) -> SchemaRecord:
    return SchemaRecord("shop", "public", table, "d", (Column("id", "bigint", -1, "number", key),))


SUBJECT = Subject(record(), "shop.public.orders")


def refused(config: Config, into: str) -> str:
    with pytest.raises(ConfigError) as caught:
        names_of(config, config.flows["mirror"], SUBJECT, into)
    return str(caught.value)


def test_the_names_of_a_rebuild() -> None:
    whole = config()
    names = names_of(whole, whole.flows["mirror"], SUBJECT, "mirror.orders_new")
    assert (names.live, names.into, names.old) == ("orders", "orders_new", "orders_old")
    assert names.flow == "mirror into mirror.orders_new"
    assert names.topics == ("shop.public.orders",)
    for into in ("orders", "orders_old", "x" * 64, "mirror."):
        assert "no name for a table beside mirror.orders" in refused(whole, into)
    assert "in the same schema" in refused(whole, "public.orders_new")
    assert "write orders_new" in refused(whole, "public.orders")  # not the live table's own name
    both = config(others='  more: {from: "shop.more.ord*", to: copy.mirror}')
    assert "flow 'more' writes to mirror.orders, too" in refused(both, "orders_new")
    apart = config(others='  more: {from: "shop.more.*", to: copy.more}')
    assert names_of(apart, apart.flows["mirror"], SUBJECT, "orders_new")


def test_a_flows_settings_are_written_out_with_its_columns() -> None:
    """As the table beside remembers them; filterwarnings makes a warning of pydantic's an error."""
    given = config(", columns: {a: b, c: {to: d, cast: text}, e: {value: 1}}").flows["mirror"]
    assert given.model_dump(mode="json")["columns"]["c"] == {"to": "d", "value": None, "cast": "text"}


@pytest.mark.parametrize(
    "mode", ["write: append", "write: insert_only", "delete: ignore", "truncate: ignore"]
)
def test_what_is_no_copy_is_refused_by_its_mode(mode: str) -> None:
    given = config(f", {mode}")
    with pytest.raises(ConfigError, match=f"{mode} makes its table another thing than a copy"):
        check_flow(given, given.flows["mirror"])


def test_another_kind_of_target_is_refused_by_name() -> None:
    given = config(to="file")
    with pytest.raises(ConfigError, match="a sql target cannot exchange two tables"):
        check_flow(given, given.flows["mirror"])


def test_one_table_of_a_flow_with_several_is_named() -> None:
    flow = config().flows["mirror"]
    records = {each.table: each for each in (record(), record("items"), record("log", key=False))}
    topics = [f"shop.public.{table}" for table in records]
    with pytest.raises(ConfigError, match="--into is one table, and flow 'mirror' has 3"):
        subject_of(flow, topics, records)
    assert subject_of(flow, topics[1:2], records).record.table == "items"
    with pytest.raises(ConfigError, match=r"public\.log has no key"):
        subject_of(flow, topics[2:], records)
    with pytest.raises(ConfigError, match="was published so far"):
        subject_of(flow, ["shop.public.other"], records)
