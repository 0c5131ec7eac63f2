"""What the commands of backfills refuse before they connect to anything, and files of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers.commands.backfill import Wish, check
from consumers.commands.backfill_runs import act, find
from consumers.key_file import KEYS_LIMIT, LINE_LIMIT_BYTES, read_keys
from streamer.changes.backfill import Progress, Request, Run, State
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Config, parse
from streamer.errors import ConfigError

CONFIG = """
name: acme
sources:
  shop: {kind: postgres, url: "postgresql://u@localhost/none", tables: {"public.*": {}}}
  game: {kind: redis, url: "redis://localhost/0", entities: {players: {pattern: "player:{id}", type: hash}}}
targets: {copy: {kind: postgres, url: "postgresql://u@localhost:1/none"}}
flows: {mirror: {from: "shop.public.*", to: copy}}
"""


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("shp", ["orders"]), "did you mean 'shop'?"),
        (Wish("shop", []), "which rows? name a table of shop"),
        (Wish("game", []), "its entities: players; or --all"),
        (Wish("shop", ["orders"], all=True), "--all takes every table"),
        (Wish("shop", ["orders"], where="true", keys="file"), "--where and --keys both say which rows"),
        (Wish("game", ["players"], where="true"), "has no SQL for --where"),
        (Wish("shop", ["a", "b"], where="true"), "--where is of one table"),
        (Wish("shop", ["orders"], where="id = 5) or (1=1"), "the condition is no expression: its ')' at"),
        (Wish("shop", [], all=True, keys="file"), "--keys is of one table"),
        (Wish("shop", ["orders"], delete_missing=True), "name the keys: --keys FILE"),
        (
            Wish("shop", ["orders"], rate="x/s"),
            "--rate 'x/s' is not a rate\n  -> write rows a second: 5000/s;",
        ),
        (Wish("shop", ["orders"], rate="5/fortnight"), "is not a rate\n  -> write rows a second"),
        (Wish("shop", ["orders"], rate="0"), "without --rate there is no limit"),
        (Wish("shop", ["orders"], rate="1/h"), "is not from 1 to 10,000,000 rows a second"),
    ],
)
def test_mistakes_are_named(wish: Wish, said: str, config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config, wish)
    assert said in str(caught.value)


def test_a_rate_is_rows_a_second(config: Config) -> None:
    assert check(config, Wish("shop", ["orders"], rate="5000/s")) == 5000
    assert check(config, Wish("shop", ["orders"], rate="6000/m")) == 100
    assert check(config, Wish("shop", ["orders"])) is None


@pytest.mark.parametrize(
    ("action", "run", "said"),
    [
        ("cancle", "x", "did you mean 'cancel'?"),
        ("list", "x", "`list` takes no run"),
        ("pause", "", "which backfill is to pause?"),
    ],
)
def test_actions_are_named(action: str, run: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        act(tmp_path / "none.yaml", action, run, source="", as_json=False)
    assert said in str(caught.value)


def test_a_run_is_found_by_the_beginning_of_its_id() -> None:
    def made(name: str, state: State) -> Run:
        return Run("shop", name, Request(name, "shop"), progress=Progress(state))

    runs = {run.run: run for run in (made("20261122T1-aa", State.DONE), made("20261122T2-bb", State.RUNNING))}
    assert find(runs, "20261122T2").run == "20261122T2-bb"
    assert find(runs, "20261122T1-aa").run == "20261122T1-aa"
    for name, said in (
        ("2026", "2 runs begin with '2026'"),
        ("20261122T2-bc", "did you mean '20261122T2-bb'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            find(runs, name)
        assert said in str(caught.value)


def record(*columns: tuple[str, str, str]) -> SchemaRecord:
    """(name, type, kind) of the key; a value beside it."""
    key = [Column(name, type_, -1, kind, True) for name, type_, kind in columns]
    return SchemaRecord("shop", "public", "t", "d", (*key, Column("v", "text", -1, "text", False)))


ID = ("id", "integer", "number")


def keys_of(tmp_path: Path, content: str | bytes, *columns: tuple[str, str, str]) -> list[Any]:
    path = tmp_path / "keys"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_keys(str(path), record(*columns))


@pytest.mark.parametrize(
    ("column", "lines", "values"),
    [
        (ID, ["7", "-7", "[8]", '{"id": 9}', '"10"'], [7, -7, 8, 9, 10]),
        (("id", "bigint", "number"), ["9223372036854775807"], [2**63 - 1]),
        (("n", "numeric(10,2)", "numeric"), ["1.50", "[1.50]", "[2]", "NaN"], ["1.50", "2", "NaN"]),
        (("f", "double precision", "float"), ["1.5", "[-0.0]", "Infinity"], [1.5, -0.0, "Infinity"]),
        (("b", "boolean", "bool"), ["t", "[false]"], [True, False]),
        (
            ("u", "uuid", "text"),
            ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{}".replace("{}", "a0eebc999c0b4ef8bb6d6bb9bd380a12")],
            ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12"],
        ),
        (("t", "text", "text"), ["a b", '"a\\nb"', '["#"]', "[7]", "007"], ["a b", "a\nb", "#", "7", "007"]),
        (("d", "date", "date"), ["2026-11-22"], ["2026-11-22"]),
        (("x", "bytea", "bytea"), ["\\x0102", "AQM="], ["AQI=", "AQM="]),
        (("a", "integer[]", "array:number"), ["[[1, 2]]"], [[1, 2]]),
    ],
)
def test_keys_have_the_form_of_an_envelope(
    column: tuple[str, str, str], lines: list[str], values: list[Any], tmp_path: Path
) -> None:
    assert keys_of(tmp_path, "\n".join(lines), column) == [(value,) for value in values]


def test_comments_empty_lines_repetitions_and_line_ends(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf# keys\r\n\r\n 7 \r\n7\n[7]\n8"
    assert keys_of(tmp_path, content, ID) == [(7,), (8,)]


def test_columns_are_in_the_order_of_the_key(tmp_path: Path) -> None:
    region = ("region", "text", "text")
    content = '{"id": 1, "region": "eu"}\n["us", 2]'
    assert keys_of(tmp_path, content, region, ID) == [("eu", 1), ("us", 2)]


@pytest.mark.parametrize(
    ("line", "columns", "said"),
    [
        ("seven", [ID], "column id (integer): an integer was expected, not 'seven'"),
        ("2147483648", [ID], "2147483648 is beyond what the column holds"),
        ("9" * 5_000, [ID], "a number of 5000 digits"),
        ("1.5", [ID], "an integer was expected, not '1.5'"),
        ("[null]", [ID], "it is null, and a key never is"),
        ("[1, 2]", [ID], "the key has 1 column (id); these are 2 values"),
        ("[1", [ID], "it begins as JSON and is none"),
        ("[" * 5_000, [ID], "it begins as JSON and is none"),
        ('{"ID": 1}', [ID], "the key is id, not ID"),
        ('{"id": {"a": 1}}', [ID], 'an integer was expected, not {"a": "1"}'),
        ("7", [ID, ("region", "text", "text")], "the key has 2 columns (id, region); this is one value"),
        ("x", [("u", "uuid", "text")], "'x' is not a uuid"),
        ("1_000", [("n", "numeric", "numeric")], "a number was expected"),
        ("1e400", [("f", "real", "float")], "1e400 is beyond what the column holds"),
        ("maybe", [("b", "boolean", "bool")], "true or false was expected"),
        ("\\xzz", [("x", "bytea", "bytea")], "hex digits were expected"),
        ("?", [("x", "bytea", "bytea")], "base64 was expected"),
        (b"\xff", [ID], "the line is not UTF-8"),
        ("9" * (LINE_LIMIT_BYTES + 1), [ID], "is no key"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(
    line: str | bytes, columns: list[tuple[str, str, str]], said: str, tmp_path: Path
) -> None:
    raw = line.encode() if isinstance(line, str) else line
    with pytest.raises(ConfigError) as caught:
        keys_of(tmp_path, b"# first\n\n" + raw + b"\n", *columns)
    assert caught.value.where == f"{tmp_path / 'keys'}:3"
    assert said in caught.value.what
    assert caught.value.fix.startswith("write a key as ")


def test_a_file_without_a_key_or_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file has no key"):
        keys_of(tmp_path, "# nothing\n", ID)
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(str(tmp_path / "none"), record(ID))


def test_more_keys_than_a_capture_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEYS_LIMIT == 1_000_000
    monkeypatch.setattr("consumers.key_file.KEYS_LIMIT", 3)
    with pytest.raises(ConfigError) as caught:
        keys_of(tmp_path, "1\n2\n3\n3\n4\n", ID)
    assert caught.value.where.endswith(":5")
    assert "--where" in caught.value.fix
