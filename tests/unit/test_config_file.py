"""A config's file: YAML, references to the environment and to files, and secrets that never print."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamer.config import PostgresSource, describe_postgres, load, parse
from streamer.errors import ConfigError
from tests.harness.configs import ENVIRON, REFERENCE, SECRET, changed, mistake


def test_a_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tailrace init"):
        load(tmp_path / "none.yaml", environ={})


def test_a_missing_environment_variable_is_named_with_its_line() -> None:
    message = mistake(changed("postgresql://u:p@h/shop", "${SHOP_URL}"))
    assert "t.yaml:5: the environment variable SHOP_URL is not set" in message
    assert "export SHOP_URL=..." in message


def test_references_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pa:ss\n")
    text = changed("name: acme", "name: ${A:-${B}").replace("${A:-${B}", "${NAME:-fallback}")
    assert parse(text, environ={}).name == "fallback"
    assert parse(text, environ={"NAME": ""}).name == "fallback"
    assert parse(text, environ={"NAME": "given"}).name == "given"
    keys = "name: acme\ncontrol: {keys: {admin: '${file:secret}', read: 'a$${b}'}}"
    config = parse(changed("name: acme", keys), tmp_path / "t.yaml", environ={})
    assert config.control.keys.admin is not None
    assert config.control.keys.admin.get_secret_value() == "pa:ss"
    assert config.control.keys.read is not None
    assert config.control.keys.read.get_secret_value() == "a${b}"


def test_references_that_cannot_be_filled_in(tmp_path: Path) -> None:
    assert "${file:none}: No such file" in mistake(changed("acme", "'${file:none}'"))
    assert "'${a b}' is no reference" in mistake(changed("acme", "'${a b}'"))
    assert "has no '}'" in mistake(changed("acme", "'${NAME'"))


def test_words_of_yaml_stay_words() -> None:
    text = changed("name: acme", "name: no").replace("tables:", "on: 1\n    tables:")
    assert "unknown key 'on'" in mistake(text)
    assert parse(changed("acme", "off"), environ={}).name == "off"


def test_merge_keys_and_aliases() -> None:
    text = changed("name: acme", "name: acme").replace(
        "to: copy}", "to: copy.a}\n  more: {from: shop.sales.t, to: copy.b}"
    )
    text = text.replace("mirror: {", "mirror: &base {").replace("more: {", "more: {<<: *base, ")
    assert parse(text, environ={}).flows["more"].table_schema == "b"
    assert "repeats itself" in mistake("name: &a [*a]\n")


@pytest.mark.parametrize(
    "place", ["sources", "targets", "kafka"], ids=["source url", "target url", "number from a variable"]
)
def test_secrets_never_print(place: str) -> None:
    texts = {
        "sources": changed("postgresql://u:p@h/shop", "'postgres//${P}'"),
        "targets": changed("postgresql://u:p@h/copy", "'host=h pass word=${P}'"),
        "kafka": changed(
            "name: acme", "name: acme\nkafka: {topics: {partitions: '${P}', retention: '${P}'}}"
        ),
    }
    assert SECRET not in mistake(texts[place], {"P": SECRET})


def test_a_valid_config_never_prints_its_secrets() -> None:
    config = load(REFERENCE, environ=ENVIRON)
    assert SECRET not in repr(config)
    assert SECRET not in str(config)
    shop = config.sources["shop"]
    assert isinstance(shop, PostgresSource)
    assert describe_postgres(shop.url) == "app@db.example:5433/shop"


def test_the_reference_is_plain_yaml_for_other_tools() -> None:
    assert yaml.safe_load(REFERENCE.read_text())["name"] == "acme"
