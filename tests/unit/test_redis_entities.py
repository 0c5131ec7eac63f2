"""Keys to tables: every type of entity, its schema and rows, what a pivot needs, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import yaml

from streamer.changes.kinds import decoder_for
from streamer.config import RedisSource, parse
from streamer.redis.encode import BadValue
from streamer.redis.entities import Entities, Match
from streamer.redis.pivot import PivotEntity, Read
from streamer.redis.rows import PlainEntity

REFERENCE = Path(__file__).parents[2] / "config" / "tailrace.yaml"
NAMES = ("SHOP_URL", "WAREHOUSE_URL", "VECTORS_URL", "GAME_REDIS_URL", "CACHE_URL", "WIKI_TOKEN")
MIDNIGHT_US = 1_795_305_600_000_000
MIDNIGHT = "2026-11-22T00:00:00Z"


class Found(NamedTuple):
    type: str | None
    value: Any = None
    expires_us: int | None = None


def entities(text: str, source: str = "") -> Entities:
    entries = yaml.safe_load(text)
    config = {
        "name": "acme",
        "sources": {
            "game": {"kind": "redis", "url": "redis://h/3", "entities": entries}
            | yaml.safe_load(source or "{}")
        },
    }
    parsed = parse(yaml.safe_dump(config, sort_keys=False), environ={}).sources["game"]
    assert isinstance(parsed, RedisSource)
    return Entities(parsed)


def matched(found: Entities, key: bytes, db: int = 3) -> tuple[PlainEntity, Match]:
    match = found.match(db, key)
    assert match is not None
    assert match.entity is not None
    return match.entity, match


def rows(found: Entities, key: bytes, state: Found, db: int = 3) -> list[tuple[Any, Any]]:
    """[(row key, row)] as Python; each value must be one that its column's kind reads."""
    entity, match = matched(found, key, db)
    bad: list[BadValue] = []
    made = entity.rows(match.place(), state, bad)
    assert not bad
    plain = [(orjson.loads(k), orjson.loads(v)) for k, v in made.items()]
    for row_key, row in plain:
        assert list(row) == [column.name for column in entity.record.columns]
        assert tuple(row_key) == entity.record.key_columns
        assert {name: row[name] for name in row_key} == row_key
        for column in entity.record.columns:
            if row[column.name] is not None:
                decoder_for(column.kind)(row[column.name])
    return plain


def shape(found: Entities, name: str) -> list[tuple[str, str, bool]]:
    return [(c.name, c.type, c.key) for c in found.record(name).columns]


def test_the_reference() -> None:
    environ = {
        name: "redis://h" if "REDIS" in name or "CACHE" in name else f"postgresql://h/{name}"
        for name in NAMES
    }
    config = parse(REFERENCE.read_text(), environ=environ).sources["game"]
    assert isinstance(config, RedisSource)
    found = Entities(config)
    globs = found.globs()[0]
    assert b"user:*" in globs
    assert b"leaderboard:daily" not in globs, "leaderboard:* has it"
    assert shape(found, "players") == [
        ("id", "text", True),
        ("score", "bigint", False),
        ("seen", "timestamp with time zone", False),
    ]
    assert shape(found, "leaderboard")[-3:] == [
        ("yearly", "bigint", False),
        ("name", "text", False),
        ("updated_at", "timestamp with time zone", False),
    ]
    record = found.record("scores")
    assert (record.source, record.schema, record.table, record.identity) == ("game", "game", "scores", "d")
    assert record.key_columns == ("period", "user_id")


def test_strings() -> None:
    found = entities(
        '{raw: {pattern: "r:{id}", type: string}, n: {pattern: "n:{id}", type: string, value: int}}'
    )
    assert shape(found, "raw") == [("id", "text", True), ("value", "text", False)]
    assert rows(found, b"r:1", Found("string", b"\xff")) == [({"id": "1"}, {"id": "1", "value": "\\xff"})]
    assert rows(found, b"n:1", Found("string", b"7")) == [({"id": "1"}, {"id": "1", "value": 7})]
    assert rows(found, b"n:1", Found(None)) == []


@pytest.mark.parametrize("form", ["type: json", "type: string, value: json"])
def test_json_text(form: str) -> None:
    found = entities(f'{{docs: {{pattern: "d:{{id}}", {form}}}}}')
    assert shape(found, "docs")[1] == ("value", "jsonb", False)
    assert rows(found, b"d:x", Found("string", b'{"a": 1.0}'))[0][1]["value"] == '{"a": 1.0}'
    apart = entities(
        f'{{docs: {{pattern: "d:{{id}}", {form}, columns: {{n: numeric, who: {{field: user}}}}}}}}'
    )
    assert rows(apart, b"d:x", Found("string", b'{"n": 1.10, "user": "u", "more": 1}'))[0][1] == {
        "id": "x",
        "n": "1.10",
        "who": "u",
    }
    entity, match = matched(apart, b"d:x")
    with pytest.raises(BadValue, match="is JSON, but no object"):
        entity.rows(match.place(), Found("string", b"[1]"), [])


def test_hashes() -> None:
    found = entities(
        '{typed: {pattern: "t:{id}", type: hash, columns: {n: int, at: {field: ts, cast: epoch_s}}},'
        ' whole: {pattern: "w:{id}", type: hash},'
        ' fields: {pattern: "f:{id}", type: hash, rows: {field: name}}}'
    )
    assert rows(found, b"t:1", Found("hash", [b"n", b"5", b"ts", b"1795305600", b"more", b"x"])) == [
        ({"id": "1"}, {"id": "1", "n": 5, "at": MIDNIGHT})
    ]
    assert rows(found, b"t:1", Found("hash", {b"n": b"5"}))[0][1]["at"] is None
    assert rows(found, b"w:1", Found("hash", {b"b": b"2", b"a": b"1"}))[0][1]["value"] == '{"a":"1","b":"2"}'
    assert rows(found, b"f:1", Found("hash", {b"b": b"2"})) == [
        ({"id": "1", "name": "b"}, {"id": "1", "name": "b", "value": "2"})
    ]


def test_lists_sets_and_zsets_exploded_and_whole() -> None:
    found = entities(
        '{l: {pattern: "l:{id}", type: list, rows: {index: n}}, lw: {pattern: "lw:{id}", type: list},'
        ' s: {pattern: "s:{id}", type: set, rows: {member: tag}}, sw: {pattern: "sw:{id}", type: set},'
        ' z: {pattern: "z", type: zset, rows: {member: who}, columns: {who: int, score: int}},'
        ' zw: {pattern: "zw:{id}", type: zset}}'
    )
    assert rows(found, b"l:1", Found("list", [b"a", b"a"])) == [
        ({"id": "1", "n": 0}, {"id": "1", "n": 0, "value": "a"}),
        ({"id": "1", "n": 1}, {"id": "1", "n": 1, "value": "a"}),
    ]
    assert rows(found, b"lw:1", Found("list", [b"b", b"a"]))[0][1]["value"] == '["b","a"]'
    assert rows(found, b"s:1", Found("set", {b"a"})) == [({"id": "1", "tag": "a"}, {"id": "1", "tag": "a"})]
    assert rows(found, b"sw:1", Found("set", [b"b", b"a"]))[0][1]["value"] == '["a","b"]'
    assert rows(found, b"z", Found("zset", [b"7", b"1e3", b"8", -0.0])) == [
        ({"who": 7}, {"who": 7, "score": 1000}),
        ({"who": 8}, {"who": 8, "score": 0}),
    ]
    assert rows(found, b"zw:1", Found("zset", [b"b", b"inf"]))[0][1]["value"] == '{"b":"Infinity"}'


def test_streams_give_a_row_an_entry() -> None:
    found = entities(
        '{log: {pattern: "log:{id}", type: stream, rows: {id: entry}},'
        ' typed: {pattern: "t", type: stream, columns: {n: int}}}'
    )
    entries = [(b"1-0", [b"a", b"1", b"a", b"2"]), (b"2-0", {b"n": b"5"})]
    assert rows(found, b"log:x", Found("stream", entries)) == [
        ({"id": "x", "entry": "1-0"}, {"id": "x", "entry": "1-0", "fields": '{"a":"2"}'}),
        ({"id": "x", "entry": "2-0"}, {"id": "x", "entry": "2-0", "fields": '{"n":"5"}'}),
    ]
    assert [row["n"] for _, row in rows(found, b"t", Found("stream", entries))] == [None, 5]
    assert [matched(found, key)[0].appends for key in (b"t", b"log:x")] == [True, True]


def test_an_expiry_is_a_column_when_asked() -> None:
    found = entities(
        '{s: {pattern: "s:{id}", type: string, expires_at: until},'
        ' z: {pattern: "z:{id}", type: zset, rows: {member: m}, expires_at: until}}'
    )
    assert (
        rows(found, b"s:1", Found("string", b"x", MIDNIGHT_US + 500_000))[0][1]["until"]
        == "2026-11-22T00:00:00.5Z"
    )
    assert rows(found, b"s:1", Found("string", b"x"))[0][1]["until"] is None
    assert rows(found, b"z:1", Found("zset", {b"a": 1.5}, MIDNIGHT_US))[0][1] == {
        "id": "1",
        "m": "a",
        "score": 1.5,
        "until": MIDNIGHT,
    }


def test_an_expiry_past_all_dates_is_infinity() -> None:
    found = entities('{s: {pattern: "s:{id}", type: string, expires_at: until}}')
    assert rows(found, b"s:1", Found("string", b"x", 2**62))[0][1]["until"] == "infinity"


def test_keys_of_any_bytes() -> None:
    found = entities(
        '{s: {pattern: "s:{id}", type: string, key: {id: bytes}}, t: {pattern: "t:{id*}", type: string}}'
    )
    assert rows(found, b"s:\xff\x00", Found("string", b""))[0][0] == {"id": "/wA="}
    keys = [
        rows(found, key, Found("string", b""))[0][0]["id"]
        for key in (b"t:\xff", b"t:\\xff", b"t:a:b", b"t:\n")
    ]
    assert keys == ["\\xff", "\\x5c786666", "a:b", "\n"]


def test_several_databases_are_in_the_key() -> None:
    found = entities(
        '{a: {pattern: "a:{id}", type: string}, b: {pattern: "b:{id}", type: string, databases: [2]},'
        ' c: {pivot: id, columns: {x: {string: "a:{id}"}}}}',
        "{databases: [0, 1]}",
    )
    assert found.globs() == {0: [b"a:*"], 1: [b"a:*"], 2: [b"b:*"]}
    assert rows(found, b"a:1", Found("string", b"x"), db=1)[0][0] == {"db": 1, "id": "1"}
    assert rows(found, b"b:1", Found("string", b"x"), db=2)[0][0] == {"id": "1"}
    assert found.match(2, b"a:1") is None
    assert found.match(9, b"a:1") is None
    match = found.match(1, b"a:1")
    assert match is not None
    (feed,) = match.feeds
    assert feed.pivot.place(1, b"1").head == b'{"db":1,"id":"1"}'
    assert shape(found, "c")[0] == ("db", "bigint", True)
    assert found.place("a", 2, b"a:1") is None
    assert found.place("a", 1, b"a:1") == match.place()


@pytest.mark.parametrize(
    ("entity", "key", "state", "words"),
    [
        (
            '{pattern: "k:{id}", type: hash}',
            b"k:1",
            Found("zset", []),
            "the key is a zset, and the entity takes a hash",
        ),
        ('{pattern: "k:{id}", type: json}', b"k:1", Found("string", b"{"), "is not JSON"),
        ('{pattern: "k:{id}", type: json}', b"k:1", Found("string", b"NaN"), "is not JSON"),
        (
            '{pattern: "k:{id}", type: string, value: int}',
            b"k:1",
            Found("string", b"nan"),
            "'nan' is not an integer",
        ),
        (
            '{pattern: "k:{id}", type: hash, columns: {n: int}}',
            b"k:1",
            Found("hash", {b"n": b""}),
            "column n: '' is not an integer",
        ),
        (
            '{pattern: "k:{id}", type: string, key: {id: int}}',
            b"k:01",
            Found("string", b""),
            "a part of the key: '01'",
        ),
        ('{pattern: "k:{id}", type: zset}', b"k:1", Found("zset", [b"a", b"nan"]), "a score is never NaN"),
    ],
)
def test_what_cannot_be_used_of_a_whole_key(entity: str, key: bytes, state: Found, words: str) -> None:
    found = entities(f"{{e: {entity}}}")
    plain, match = matched(found, key)
    with pytest.raises(BadValue) as caught:
        plain.rows(match.place(), state, [])
    bad = caught.value
    assert words in bad.reason
    assert (bad.entity, bad.db, bad.key, bad.row_key) == ("e", 3, key, None)
    if bad.type == "string" and isinstance(state.value, bytes):
        assert bad.payload == state.value


def test_one_bad_member_does_not_hold_up_the_others() -> None:
    found = entities('{z: {pattern: "z:{id}", type: zset, rows: {member: m}, columns: {m: int, score: int}}}')
    entity, match = matched(found, b"z:1")
    bad: list[BadValue] = []
    made = entity.rows(match.place(), Found("zset", {b"1": 1.0, b"2": 1.5, b"x": 2.0}), bad)
    assert list(made) == [b'{"id":"1","m":1}']
    assert [b.row_key for b in bad] == [b'{"id":"1","m":2}', None], "the row of a bad score is known"
    assert [b.reason for b in bad] == [
        "'2': '1.5' is not an integer",
        "'x': 'x' is not a bigint in its shortest form, which a key must be",
    ]
    with pytest.raises(BadValue, match="is not an integer"):
        entity.member_row(match.place(), b"2", 1.5)


def test_members_come_back_from_row_keys_and_deletes_hold_the_key() -> None:
    found = entities('{z: {pattern: "z:{id}", type: zset, rows: {member: m, score: "s"}, expires_at: until}}')
    entity, match = matched(found, b"z:1")
    for member in (b"a", b"\xff", b"\\x00", b""):
        row_key, row = entity.member_row(match.place(), member, b"1")
        assert row_key.startswith(match.place().head)
        assert row.startswith(row_key[:-1])
        assert entity.member_of(row_key) == member
    assert orjson.loads(entity.gone(b'{"id":"1","m":"a"}')) == {"id": "1", "m": "a", "s": None, "until": None}


PIVOT = """
scores: {pattern: "board:{period}", type: zset, rows: {member: who, score: points}}
whole: {pattern: "names:{of}", type: hash}
ranks:
  pivot: id
  columns:
    daily: {zset: "board:daily", cast: int}
    mine: {zset: "own:{id}", field: best}
    alias: {hash: "names:all"}
    name: {hash: "user:{id}", field: name}
    note: {string: "note:{id}"}
    doc: {json: "doc:{id}"}
    age: {json: "doc:{id}", field: age, cast: int}
"""


def pivot(found: Entities) -> PivotEntity:
    entity = found.by_name["ranks"]
    assert isinstance(entity, PivotEntity)
    return entity


def test_what_a_pivots_row_reads() -> None:
    found = entities(PIVOT)
    row = pivot(found).row(3, b"u1")
    assert row.reads == (
        Read(3, b"board:daily", "zset", b"u1"),
        Read(3, b"own:u1", "zset", b"best"),
        Read(3, b"names:all", "hash", b"u1"),
        Read(3, b"user:u1", "hash", b"name"),
        Read(3, b"note:u1", "string", None),
        Read(3, b"doc:u1", "string", None),
    ), "two columns of one document read it once"
    made = row.row([b"12", 1.5, b"al", b"Ann", b"n", b'{"age": 7}'])
    assert made is not None
    assert orjson.loads(made) == {
        "id": "u1",
        "daily": 12,
        "mine": 1.5,
        "alias": "al",
        "name": "Ann",
        "note": "n",
        "doc": '{"age": 7}',
        "age": 7,
    }
    assert row.row([None] * 6) is None, "without `exists`, any column will do"
    assert row.row([None, None, None, None, b"", None]) is not None


def test_a_row_id_that_a_key_cannot_hold_is_null_there() -> None:
    row = pivot(entities(PIVOT)).row(3, b"a:b")
    assert [read.key for read in row.reads] == [b"board:daily", b"names:all"]
    made = row.row([1.0, None])
    assert made is not None
    assert orjson.loads(made)["name"] is None


def test_what_a_changed_key_feeds() -> None:
    found = entities(PIVOT)
    by_id = found.match(3, b"user:u1")
    assert by_id is not None
    assert by_id.entity is None
    assert [(f.pivot.name, f.row_id, f.members) for f in by_id.feeds] == [("ranks", b"u1", None)]
    shared = found.match(3, b"board:daily")
    assert shared is not None
    (feed,) = shared.feeds
    assert feed.row_id is None
    assert feed.members is shared.entity is found.by_name["scores"], "its rows show every member's change"
    own = found.match(3, b"names:all")
    assert own is not None
    assert own.entity is found.by_name["whole"]
    members = own.feeds[0].members
    assert members is not None
    assert members is not own.entity
    place = own.members_place(members)
    assert place == found.place(members.name, 3, b"names:all")
    made = members.rows(place, Found("hash", {b"u1": b"al"}), [])
    assert [members.member_of(key) for key in made] == [b"u1"]
    assert found.match(3, b"board:") is None


def test_a_cast_that_loses_or_refuses_is_not_shared_with_a_pivot() -> None:
    found = entities(
        '{z: {pattern: "b:{p}", type: zset, rows: {member: m}, columns: {score: int}},'
        ' r: {pivot: id, columns: {x: {zset: "b:d"}}}}'
    )
    match = found.match(3, b"b:d")
    assert match is not None
    members = match.feeds[0].members
    assert members is not None
    assert members is not match.entity


@pytest.mark.parametrize(
    ("exists", "present", "there"),
    [
        ("{any: [a, b]}", "b", True),
        ("{any: [a, b]}", "c", False),
        ("{all: [a, b]}", "ab", True),
        ("{all: [a, b]}", "ac", False),
        ("{any: [a], all: [b]}", "b", False),
        ("{any: [a], all: [b]}", "ab", True),
        ("{}", "c", True),
        ("{}", "", False),
    ],
)
def test_when_a_pivots_row_exists(exists: str, present: str, there: bool) -> None:
    columns = ", ".join(f'{name}: {{string: "{name}:{{id}}"}}' for name in "abc")
    found = entities(f"{{ranks: {{pivot: id, exists: {exists}, columns: {{{columns}}}}}}}")
    row = pivot(found).row(3, b"1").row([b"x" if name in present else None for name in "abc"])
    assert (row is not None) == there


def test_what_cannot_be_used_of_a_pivot() -> None:
    found = entities(PIVOT)
    row = pivot(found).row(3, b"u1")
    wrong_type = ValueError("WRONGTYPE Operation against a key")
    for answers, words in (
        ([1.5, None, None, None, None, None], "column daily: '1.5' is not an integer"),
        ([wrong_type, None, None, None, None, None], "column daily: Redis answers: WRONGTYPE"),
        ([None, None, None, None, None, b"{"], "column doc: is not JSON"),
    ):
        with pytest.raises(BadValue) as caught:
            row.row(answers)  # type: ignore[arg-type]
        assert words in caught.value.reason
        assert (caught.value.entity, caught.value.key) == ("ranks", b"u1")
    by_number = entities('{ranks: {pivot: id, key: {id: int}, columns: {a: {string: "a:{id}"}}}}')
    with pytest.raises(BadValue, match="shortest form"):
        pivot(by_number).row(3, b"x")


def test_the_fingerprint_follows_what_row_keys_depend_on() -> None:
    base = 'pattern: "k:{id}", type: zset, rows: {member: m}'
    one = entities(f"{{e: {{{base}}}}}").fingerprint
    assert one == entities(f"{{e: {{{base}, columns: {{score: int}}}}}}").fingerprint
    assert one != entities(f"{{e: {{{base}, key: {{id: int}}}}}}").fingerprint
    assert one != entities('{e: {pattern: "k:{id}", type: zset}}').fingerprint
    assert one != entities(f"{{e: {{{base}, databases: [1, 2]}}}}").fingerprint
