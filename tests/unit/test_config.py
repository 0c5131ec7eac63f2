"""The config file: what validates, what is filled in, and the message of every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamer.config import (
    ConfigFileError,
    PostgresSource,
    PostgresTarget,
    RedisSource,
    check_topics,
    load,
    parse,
)
from streamer.config.stores import if_shared
from streamer.errors import ConfigError
from tests.harness.configs import ENVIRON, REFERENCE, SMALL, changed, mistake


def test_reference_file_validates_as_a_whole() -> None:
    config = load(REFERENCE, environ=ENVIRON)
    assert config.base == REFERENCE.parent
    assert set(config.sources) == {"shop", "game", "wiki", "links"}
    assert set(config.flows) == {"mirror", "customers", "board", "back", "notes"}
    shop = config.sources["shop"]
    assert isinstance(shop, PostgresSource)
    assert shop.primary_url is None, "an empty optional URL is no URL"
    assert list(shop.tables) == ["public.audit_*", "public.customers", "public.orders", "public.*"]
    assert (shop.slot.wal_warn_bytes, shop.heartbeat_s) == (5 * 2**30, 10.0)
    assert config.kafka.topics.retention_s == 7 * 86400
    assert config.flows["customers"].hold_deletes_above == pytest.approx(0.1)
    assert isinstance(config.sources["game"], RedisSource)


def test_defaults_and_names() -> None:
    config = parse(SMALL, environ={})
    source, target, flow = config.sources["shop"], config.targets["copy"], config.flows["mirror"]
    assert isinstance(source, PostgresSource)
    assert isinstance(target, PostgresTarget)
    assert (source.name, target.name, flow.name) == ("shop", "copy", "mirror")
    assert source.slot.name == source.publication.name == "tailrace_shop"
    assert (flow.target, flow.table_schema, flow.table) == ("copy", None, None)
    assert (flow.unmapped, flow.write, flow.delete, flow.truncate) == ("add", "upsert", "apply", "apply")
    assert (target.batch.rows, target.batch.wait_s) == (10_000, 0.003)
    assert config.kafka.topics.max_message_bytes == 8 * 2**20


def test_a_slot_name_fits_the_server_whatever_the_source_is_called() -> None:
    config = parse(SMALL.replace("shop:", "My-Shop:").replace("shop.public", "My-Shop.public"), environ={})
    source = config.sources["My-Shop"]
    assert isinstance(source, PostgresSource)
    assert source.slot.name == "tailrace_my_shop"


def test_the_config_is_frozen() -> None:
    config = parse(SMALL, environ={})
    with pytest.raises(ValueError, match="frozen"):
        setattr(config, "name", "other")  # noqa: B010 - mypy knows that it is read-only


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "name: acme",
            "name: acme\nsorces: {}",
            ["t.yaml:2", "unknown key 'sorces'", "did you mean 'sources'"],
        ),
        ("    tables", "    tabels", ["t.yaml:6", "unknown key 'tabels' in sources.shop", "'tables'"]),
        ("to: copy}", "to: copy, trunkate: hold}", ["t.yaml:10", "'trunkate'", "flows.mirror", "'truncate'"]),
        ("to: copy}", "to: copi}", ["t.yaml:10", "no target 'copi'", "did you mean 'copy'"]),
        (
            '"shop.public.*", to',
            '"shpo.public.*", to',
            ["t.yaml:10", "no source 'shpo'", "did you mean 'shop'"],
        ),
        ('"shop.public.*", to', '"shop.public", to', ["t.yaml:10", "flows.mirror.from", "shop.schema.table"]),
        ('"public.*": {}', "orders: {}", ["t.yaml:6", "'orders' names no schema", '"public.orders"']),
        ('"public.*": {}', '"public.*": exclude', ["t.yaml:6", "no table is captured"]),
        (
            '"public.*": {}',
            '"public.*": exlude',
            ["t.yaml:6", "'exlude' is not one of the choices", "'exclude'"],
        ),
        ('"public.*": {}', '"public.*": {were: 1}', ["t.yaml:6", "unknown key 'were'", "'where'"]),
        ("kind: postgres\n", "kind: postgress\n", ["t.yaml:3", "'postgress' is not a kind", "'postgres'"]),
        ("    kind: postgres\n", "", ["t.yaml:3", "has no `kind`"]),
        (
            "postgresql://u:p@h/shop",
            "'mysql://u:hunter2@h'",
            ["t.yaml:5", "sources.shop.url", "postgresql://user:"],
        ),
        *(
            ("postgresql://u:p@h/shop", f"'{url}'", ["t.yaml:5", "sources.shop.url: its login", "%2F"])
            for url in (
                "postgresql://u:hunter2/x@h/shop",
                "postgresql://u:5432/hunter2@h/shop",
                "postgres://u/hunter2@h/shop",
                "postgresql://u:5?hunter2=@h/shop",
            )
        ),
        *(
            ("postgresql://u:p@h/shop", f"'{url}'", ["t.yaml:5", "sources.shop.url: its port is no number"])
            for url in ("postgresql://u:p@h:hunter2/shop", "postgresql://u@a:1,b:70000/d", "host=h port=0")
        ),
        ("postgresql://u:p@h/shop", "''", ["t.yaml:5", "sources.shop.url: is empty"]),
        ("    url: postgresql://u:p@h/shop\n", "", ["t.yaml:3", "sources.shop.url: is missing"]),
        ("name: acme", "name: a b", ["t.yaml:1", "name: is not a name"]),
        ("name: acme\n", "", ["t.yaml", "name: is missing"]),
        ("name: acme", "name: acme\nname: other", ["t.yaml:2", "'name' is there twice", "line 1"]),
        ("name: acme", "name: [acme", ["t.yaml:2", "is not YAML"]),
        (
            'from: "shop.public.*"',
            'from: "shop.public.a, shop.public.b"',
            ["t.yaml:10", "flows.mirror.from", "is a list", "an entry for each"],
        ),
        (
            "name: acme",
            "name: acme\nkafka: {topics: {max_message: 1KiB}}",
            ["t.yaml:2", "'1KiB' must be 64KiB or more"],
        ),
        ("to: copy}", 'to: "copy.a.b"}', ["t.yaml:10", "`from` fits many tables", "to: copy.a"]),
        ("to: copy}", 'to: "copy.*"}', ["t.yaml:10", "a pattern stands in `from` only"]),
        ("to: copy}", "to: copy, delete: soft}", ["t.yaml:10", "flows.mirror.delete", "soft(column)"]),
        (
            "name: acme",
            "name: acme\nkafka: {topics: {retention: 7y}}",
            ["t.yaml:2", "'7y' is not a duration", "7d"],
        ),
        (
            "name: acme",
            "name: acme\nkafka: {topics: {max_message: 1k}}",
            ["t.yaml:2", "'1k' is not a size", "8MiB"],
        ),
        (
            "name: acme",
            "name: acme\nkafka: {topics: {partitions: 0}}",
            ["t.yaml:2", "kafka.topics.partitions"],
        ),
        ("name: acme", "name: acme\nkafka: {brokers: here}", ["t.yaml:2", "kafka.brokers", "host:port"]),
        (
            "name: acme",
            'name: acme\nkafka: {brokers: "a:9092, b:99999"}',
            ["t.yaml:2", "kafka.brokers", "'b:99999' is no host:port", "65535"],
        ),
        (
            "name: acme",
            'name: acme\ncontrol: {http: "127.0.0.1:70000"}',
            ["t.yaml:2", "control.http: is no address", "127.0.0.1:8088"],
        ),
        (
            "name: acme",
            "name: acme\nkafka: {security: {protocol: SASL_SSL}}",
            ["t.yaml:2", "needs `mechanism`"],
        ),
        (
            "name: acme",
            "name: acme\nkafka: {brokers: embedded, topics: {replication_factor: 3}}",
            ["t.yaml:2", "one node"],
        ),
        (
            "    tables",
            "    slot: {wal_warn: 9GiB, wal_stop: 1GiB}\n    tables",
            ["t.yaml:6", "wal_stop is below"],
        ),
        (
            "    tables",
            "    slot: {name: Bad-Name}\n    tables",
            ["t.yaml:6", "sources.shop.slot.name", "lower-case"],
        ),
        (
            "    tables",
            "    slot: {nme: x}\n    tables",
            ["t.yaml:6", "unknown key 'nme' in sources.shop.slot"],
        ),
        ('tables: {"public.*": {}}', "tables: [public.orders]", ["t.yaml:6", "must hold keys"]),
        ("flows:\n", "flows:\n  x: 3\n", ["t.yaml:10", "flows.x: must hold keys"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_cure(old: str, new: str, words: list[str]) -> None:
    message = mistake(changed(old, new))
    for word in words:
        assert word in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/shop?user=me@server&password=x",
        "postgresql:///shop?host=/tmp&user=me@server",
        "postgresql://u:a%2Fb%40c@h:5432/shop",
        "host=h dbname=shop user=me@server",
    ],
)
def test_an_at_sign_that_is_no_end_of_a_login_is_let_be(url: str) -> None:
    source = parse(changed("postgresql://u:p@h/shop", f"'{url}'"), environ={}).sources["shop"]
    assert isinstance(source, PostgresSource)
    assert source.url.get_secret_value() == url


def test_two_problems_are_both_told_in_the_order_of_the_file() -> None:
    message = mistake(changed("    tables", "    tabels").replace("to: copy", "too: copy"))
    assert message.index("'tabels'") < message.index("'too'")


def test_unknown_keys_hide_no_other_fault_beside_or_below_them() -> None:
    text = changed(
        "    tables", "    tabels: 1\n    heartbeat: soon\n    slot: {nme: x, wal_warn: 5q}\n    tables"
    )
    message = mistake(text)
    for word in ("'tabels'", "'nme'", "sources.shop.heartbeat", "sources.shop.slot.wal_warn"):
        assert word in message
    assert "hunter2" not in message


GAME = """\
name: acme
kafka: {brokers: "h:9092", topix: {}}
sources:
  game:
    kind: redis
    url: redis://h/0
    entities: {users: {pattern: "u:{id}", type: string, value: rwa}, boards: {pattern: "b:{id}", type: set}}
  shop: {kind: postgres, url: postgresql://u:p@h/shop, tables: {"public.*": {}}}
  Shop: {kind: postgres, url: postgresql://u:p@h/shop2, tables: {"public.*": {}}}
targets:
  copy: {kind: postgres, url: postgresql://u:p@h/copy}
flows:
  a: {from: game.user, to: copy.a}
  b: {from: game.boards, to: coppy.b}
  c: {from: shop.orders, to: copy.c}
  d: {from: game.boards, to: copy.d.e.f, write: often}
"""


def test_a_fault_anywhere_hides_no_name_that_a_flow_has_wrong() -> None:
    told = mistake(GAME).splitlines()
    assert [line.partition("t.yaml:")[2] for line in told if "t.yaml" in line] == [
        "2: unknown key 'topix' in kafka",
        "7: sources.game.entities.users.value: 'rwa' is not one of the choices",
        "13: flows.a.from: 'game' has no entity 'user'",
        "14: flows.b.to: there is no target 'coppy'",
        "15: flows.c.from: 'shop.orders' does not name what to take",
        "16: flows.d.write: 'often' is not one of the choices",
    ]
    assert "write 'raw', 'text', 'int'" in "\n".join(told)


def test_faults_between_parts_of_the_file_are_told_at_once() -> None:
    sound = GAME.replace(", topix: {}", "").replace(", value: rwa", "").replace(", write: often", "")
    told = mistake(sound)
    for words in ("'Shop' and 'shop' differ", "no entity 'user'", "no target 'coppy'", "'shop.orders'"):
        assert words in told


WRITERS = """\
name: acme
sources:
  game:
    kind: redis
    url: redis://h/0
    entities: {boards: {pattern: "b:{id}", type: string}, users: {pattern: "u:{id}", type: string}}
  shop: {kind: postgres, url: postgresql://u:p@h/shop, tables: {"public.*": {}}}
targets:
  lite: {kind: sql, url: "sqlite:///copy.db"}
  lite2: {kind: sql, url: "sqlite:///copy2.db"}
  copy: {kind: postgres, url: postgresql://u:p@h/copy}
flows:
"""


def writers(one: tuple[str, str], two: tuple[str, str]) -> str:
    """(from, to) of two flows."""
    flows = [f'  {n}: {{from: "{f}", to: {t}}}\n' for n, (f, t) in (("one", one), ("two", two))]
    return WRITERS + "".join(flows)


@pytest.mark.parametrize(
    ("one", "two", "table"),
    [
        (("shop.public.boards", "lite"), ("game.boards", "lite"), "lite.main.boards"),
        (("shop.public.boards", "lite"), ("game.*", "lite"), "lite.main.boards"),
        (("game.*", "lite"), ("shop.public.Users", "lite"), "lite.main.users"),
        (("shop.public.*", "lite"), ("game.boards", "lite"), "lite.main.boards"),
        (("shop.public.*", "lite"), ("game.*", "lite"), "lite.main.boards"),
        (("game.boards", "lite.main.b"), ("shop.public.x", "lite.main.b"), "lite.main.b"),
        (("game.*", "copy.all"), ("shop.public.*", "copy.all"), "copy.all.*"),
        (("shop.*.*", "copy"), ("game.users", "copy.crm.users"), "copy.crm.users"),
        (("shop.public.users", "copy.all.users"), ("game.users", "copy.all.users"), "copy.all.users"),
    ],
)  # fmt: skip
def test_what_the_message_about_two_writers_says_is_a_config(
    one: tuple[str, str], two: tuple[str, str], table: str
) -> None:
    told = mistake(writers(one, two))
    assert f"the flows 'one' and 'two' both write {table}\n" in told
    if found := re.search(r"write `to: (\S+)` in the flow '(one|two)'", told):
        cured = (one[0], found[1]) if found[2] == "one" else one
        parse(writers(cured, (two[0], found[1]) if found[2] == "two" else two), environ={})
    else:
        assert "give one of them a target of its own, with another file" in told
        parse(writers(one, (two[0], two[1].replace("lite", "lite2"))), environ={})


def test_a_pattern_of_a_redis_source_is_its_entities() -> None:
    parse(writers(("game.*", "lite"), ("shop.public.orders", "lite")), environ={})
    parse(writers(("game.*", "copy.all"), ("shop.public.orders", "copy.all")), environ={})


AT_H = "postgresql://u:p@h"


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (("postgres", f"{AT_H}/copy"), ("postgres", "postgres://v@H:5432/copy?sslmode=require"), True),
        (("postgres", "postgresql://localhost/copy"), ("pgvector", "host=127.0.0.1 dbname=copy"), True),
        (("postgres", "postgresql://copy@h"), ("postgres", f"{AT_H}/copy"), True),
        (("postgres", f"{AT_H}/copy"), ("postgres", f"{AT_H}/other"), False),
        (("postgres", f"{AT_H}/copy"), ("postgres", f"{AT_H}:5433/copy"), False),
        (("redis", "redis://h"), ("redis", "rediss://u:p@h:6379/0"), True),
        (("redis", "redis://h/0"), ("redis", "redis://h/1"), False),
        (("sql", "sqlite:///copy.db"), ("sql", "sqlite:///./here/../copy.db"), True),
        (("sql", "sqlite:///copy.db"), ("sql", "sqlite:///copy2.db"), False),
    ],
)
def test_h30_two_targets_that_are_one_store_are_refused(
    one: tuple[str, str], two: tuple[str, str], same: bool
) -> None:
    of_vectors = ', text: "{a}", embed: "m:f", dimensions: 2' if two[0] == "pgvector" else ""
    text = f"""\
name: acme
sources: {{shop: {{kind: postgres, url: postgresql://u:p@h/shop, tables: {{"public.*": {{}}}}}}}}
targets:
  one: {{kind: {one[0]}, url: "{one[1]}"}}
  two: {{kind: {two[0]}, url: "{two[1]}"}}
flows:
  a: {{from: "shop.public.*", to: one.a}}
  b: {{from: "shop.crm.*", to: two.b{of_vectors}}}
"""
    if not same:
        parse(text, environ={})
        return
    told = mistake(text)
    assert "t.yaml:5: targets.two.url: the targets 'one' and 'two' are one store" in told
    assert "(`to: one`), or give two another" in told
    if not of_vectors:
        parse(text.replace("to: two.b", "to: one.b"), environ={})
    parse("".join(line for line in text.splitlines(keepends=True) if "  b:" not in line), environ={})


def test_a_file_without_sources() -> None:
    assert "there are no sources" in mistake("name: acme\n")
    assert "holds no keys" in mistake("")
    assert "holds no keys" in mistake("- a\n")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: acme", "nam: acme", "t.yaml:1: unknown key 'nam'\n  -> did you mean 'name'?"),
        ("    url: ", "    urll: ", "t.yaml:5: unknown key 'urll' in sources.shop\n  -> did you mean 'url'?"),
        ("sources:", "sorces:", "t.yaml:2: unknown key 'sorces'\n  -> did you mean 'sources'?"),
        ("tables: {", "tabels: {x: 1, ", "t.yaml:6: unknown key 'tabels' in sources.shop\n  -> did you mean"),
        (
            "    kind: ",
            "    knid: ",
            "t.yaml:3: sources.shop: has no `kind`\n  -> 'knid': did you mean 'kind'?",
        ),
    ],
)
def test_a_misspelt_key_is_one_fault_and_not_missing_too(old: str, new: str, said: str) -> None:
    text = mistake(changed(old, new))
    assert text.startswith(said)
    assert text.count("t.yaml:") == 1


def test_a_misspelt_key_hides_no_other_fault() -> None:
    text = mistake(changed("name: acme", "nam: acme").replace("    url: ", "    urls: 1\n    uri: "))
    found = [line.partition(": ")[2] for line in text.splitlines() if "t.yaml" in line]
    assert found == [
        f"unknown key {key}" for key in ("'nam'", "'urls' in sources.shop", "'uri' in sources.shop")
    ]
    text = mistake(changed("name: acme", "nam: acme").replace("to: copy}", "to: copi}"))
    assert "unknown key 'nam'" in text
    assert "did you mean 'copy'?" in text


def test_first_pattern_that_fits_counts() -> None:
    tables = '{"public.audit_*": exclude, public.orders: {where: "id > 1"}, "public.*": {}}'
    source = parse(changed('{"public.*": {}}', tables), environ={}).sources["shop"]
    assert isinstance(source, PostgresSource)
    assert source.rule_for("public", "audit_log") is None
    rule = source.rule_for("public", "orders")
    assert rule is not None
    assert rule.where == "id > 1"
    assert source.rule_for("public", "x.y") is not None
    assert source.rule_for("sales", "orders") is None
    assert source.rule_for("public", "_tailrace_x") is None


def test_our_own_and_the_servers_tables_are_never_captured() -> None:
    source = parse(changed('"public.*"', '"*.*"'), environ={}).sources["shop"]
    assert isinstance(source, PostgresSource)
    for schema in ("_tailrace", "pg_catalog", "information_schema", "pg_toast"):
        assert source.rule_for(schema, "t") is None
    assert source.rule_for("public", "t") is not None


def test_flows_match_topics() -> None:
    flow = parse(SMALL, environ={}).flows["mirror"]
    assert flow.matches("shop.public.orders")
    assert flow.matches("shop.public.a.b")
    assert not flow.matches("shop.sales.orders")
    assert not flow.matches("shop2.public.orders")
    assert not flow.matches("shop.public")
    assert flow.takes("public", "Ünique")
    assert flow.place("public", "orders") == ("public", "orders")
    named = parse(changed("to: copy}", "to: copy.crm}"), environ={}).flows["mirror"]
    assert named.place("public", "orders") == ("crm", "orders")


def test_flows_match_cleaned_topic_names() -> None:
    text = changed('"shop.public.*", to: copy', '"shop.My Schema.or d*", to: copy')
    flow = parse(text, environ={}).flows["mirror"]
    assert flow.matches("shop.My_Schema.or_ders")


TWO_SOURCES = SMALL.replace(
    "targets:", '  other: {kind: postgres, url: postgresql://u:p@h2/o, tables: {"public.*": {}}}\ntargets:'
)


@pytest.mark.parametrize(
    ("flow", "clash"),
    [
        ('{from: "other.public.*", to: copy}', True),
        ("{from: other.public.orders, to: copy.public.orders}", True),
        ('{from: "other.public.*", to: copy.others}', False),
        ("{from: shop.public.orders, to: copy.public.orders}", True),
        ("{from: shop.public.orders, to: copy.crm.orders}", False),
        ('{from: "shop.sales.*", to: copy}', False),
    ],
)
def test_h03_two_sources_to_one_table_are_refused(flow: str, clash: bool) -> None:
    text = TWO_SOURCES + f"  second: {flow}\n"
    if clash:
        message = mistake(text)
        assert "the flows 'mirror' and 'second' both write copy.public" in message
        assert "t.yaml:12" in message
    else:
        parse(text, environ={})


def test_two_sources_on_one_slot_are_refused() -> None:
    url = "postgresql://u:p@h/shop"
    same = f'  other: {{kind: postgres, url: {url}, slot: {{name: tailrace_shop}}, tables: {{"a.*": {{}}}}}}'
    assert "use the slot 'tailrace_shop'" in mistake(SMALL.replace("targets:", same + "\ntargets:"))


def test_a_target_with_a_sources_name_is_refused() -> None:
    text = changed("  copy: {kind", "  shop: {kind").replace("to: copy", "to: shop")
    found = mistake(text)
    assert "a source has the name 'shop' too: both would share the topic shop.dead_letters" in found
    assert "rename the target" in found


def test_tables_whose_topics_collide_are_refused() -> None:
    check_topics([("shop", "public", "a_b"), ("shop", "public", "a-b"), ("shop", "public", "a_b")])
    with pytest.raises(ConfigError, match=r'"public"."a b" and "public"."a/b" of .shop. would share'):
        check_topics([("shop", "public", "a b"), ("shop", "public", "a/b")])


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("on: shop", "on: shup", "did you mean 'shop'"),
        ("{pull: wiki, every", "{pull: wikki, every", "did you mean 'wiki'"),
        ("{flow: customers, threshold", "{flow: custommers, threshold", "did you mean 'customers'"),
        ("{reconcile: links, at", "{reconcile: link, at", "did you mean 'links'"),
        ("after: [retag]", "after: [retags]", "did you mean 'retag'"),
        ("to: [ops]", "to: [opps]", "did you mean 'ops'"),
        ("for_each: spaces", "for_each: space", "did you mean 'spaces'"),
        ("game.leaderboard, to", "game.leadboard, to", "did you mean 'leaderboard'"),
        ('at: ["06:00"]', 'at: ["26:00"]', "is not a time of day"),
        ("timezone: UTC", "timezone: Mars", "is not a time zone"),
        ("threshold: 1%", "threshold: 101%", "is not a share"),
        ("drift, stale,", "drift, stail,", "'stail' is not one of the choices"),
    ],
)
def test_names_in_the_reference_are_checked(old: str, new: str, word: str) -> None:
    text = REFERENCE.read_text()
    assert text.count(old) == 1
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ConfigFileError) as caught:
        parse(text.replace(old, new), Path("t.yaml"), environ=ENVIRON)
    assert word in str(caught.value)
    assert caught.value.problems[0].where == f"t.yaml:{line}"


@pytest.mark.parametrize(("kind", "instead"), [("sql", "another file"), ("redis", "another database of the")])
def test_h30_a_store_that_is_another_targets_names_both(kind: str, instead: str) -> None:
    """What apply says when only the store could tell."""
    told = if_shared("acme.other", "acme.copy", kind)
    assert told.startswith(
        "where other and copy are both in the file: a store is one target's: send the flows"
    )
    assert f"(`to: other`), or give copy {instead}" in told
    assert if_shared("other.copy", "acme.copy", kind) == ""
