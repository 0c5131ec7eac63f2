"""`sources:` of kind redis: what validates, and the message of every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.config import RedisSource, parse
from streamer.errors import ConfigError

SMALL = """\
name: acme
sources:
  game:
    kind: redis
    url: {url}
    {source}
    entities:
      {entities}
"""


def source(entities: str, more: str = "rescan: 1h", url: str = "redis://h") -> RedisSource:
    text = SMALL.format(url=url, source=more, entities=entities.replace("\n", "\n      "))
    parsed = parse(text, Path("t.yaml"), environ={}).sources["game"]
    assert isinstance(parsed, RedisSource)
    return parsed


def mistake(entities: str, more: str = "rescan: 1h") -> str:
    with pytest.raises(ConfigError) as caught:
        source(entities, more)
    return str(caught.value)


def test_defaults() -> None:
    found = source('a: {pattern: "a:{id}", type: hash}')
    assert (found.notifications, found.rescan_s, found.databases) == ("manage", 3600.0, ())
    entity = found.entities["a"]
    assert (entity.explodes, entity.expires_at, entity.debounce_s) == (False, None, None)
    assert found.databases_of(entity) == (0,)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", 0),
        ("redis://h/4", 4),
        ("rediss://u:p@h:6380/5?ssl_cert_reqs=none", 5),
        ("redis://h/4?db=6", 6),
        ("unix:///run/redis/7?db=8", 8),
        ("unix:///run/redis/7", 0),
        ("redis+sentinel://one/7/4", 4),
        ("redis+sentinel://me:p%40w@one,two:5000,[::1]:5001/shop?role=replica", 0),
    ],
)
def test_the_urls_database_is_the_default(url: str, database: int) -> None:
    found = source('a: {pattern: "a:{id}", type: hash}', url=url)
    assert found.databases_of(found.entities["a"]) == (database,)


SENTINEL = "redis+sentinel://me:secret@"


@pytest.mark.parametrize(
    ("url", "what", "fix"),
    [
        ("http://me:secret@h", "is not the url of a Redis server", "redis://user:password@host:6379/0"),
        ("redis://me:secret@h:none", "'h:none', which is no host and port", "host:6379/0"),
        ("redis://me:secret@h:70000", "'h:70000', which is no host and port", "host:6379/0"),
        ("redis://me:secret@[h/0", "cannot be read", "host:6379/0"),
        ("redis://me:secret@h/zero", "'zero', which is not a database's number", "host:6379/0"),
        ("redis://me:secret@h?colour=red", "that is not known: colour", "known are db, ssl_ca_certs"),
        ("redis://me:secret@h?db=1&db=2", "the option db twice", "one of them"),
        ("redis://me:secret@h?ssl_cert_reqs=none", "only a rediss:// url uses TLS", "write rediss://"),
        ("rediss://me:secret@h?ssl_cert_reqs=no", "ssl_cert_reqs=no", "ssl_cert_reqs=none"),
        ("redis://me:secret#1@h/0", "cuts it in two", "write %23 for #"),
        ("redis://me:secret/1@h/0", "cuts it in two", "%2F for /"),
        ("redis://me:secret?1@h/0", "cuts it in two", "%3F for ?"),
        ("unix://me:secret@", "without a path", "unix:///path/to/socket"),
        (SENTINEL + "/shop", "names no Sentinel", "host:26379,host:26379/NAME/0"),
        (SENTINEL + "one:26379", "no NAME that they watch", "host:26379/NAME/0"),
        (SENTINEL + "one:none/shop", "'one:none', which is no Sentinel's host and port", "host:26379,"),
        (SENTINEL + "one:0/shop", "'one:0', which is no Sentinel's host and port", "host:26379,"),
        (SENTINEL + "one,,two/shop", "'', which is no Sentinel's host and port", "host:26379,"),
        (SENTINEL + "one/shop/zero", "'zero', which is not a database's number", "NAME/0"),
        (SENTINEL + "one/shop?role=boss", "has role=boss", "write role=primary or role=replica"),
        (SENTINEL + "one/shop?colour=red", "not known: colour", "known are role, sentinel_user"),
        (SENTINEL + "one/shop?ssl_ca_certs=x", "only a rediss+sentinel:// url", "write rediss+sentinel://"),
        ("redis+sentinel://me:secret/1@one/shop", "cuts it in two", "%2F for /"),
    ],
)
def test_a_url_that_cannot_be_is_told_at_load_without_the_password(url: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source('a: {pattern: "a:{id}", type: hash}', url=f"'{url}'")
    told = str(caught.value)
    assert "t.yaml:5: " in told
    assert "sources.game.url" in told
    assert what in told
    assert fix in told
    assert "secret" not in told


def test_the_forms_that_validate() -> None:
    found = source(
        """\
raw: {pattern: "r:{id}", type: string, value: raw, expires_at: until, debounce: 500ms}
typed: {pattern: "t:{id}", type: string, value: epoch_ms, key: {id: int}, databases: [1, 2]}
text: {pattern: "j:{id}", type: json, columns: {at: {field: ts, cast: timestamptz, naive_is: Europe/Paris}}}
one: {pattern: board, type: zset, rows: {member: who}, columns: {score: int}}
log: {pattern: "log{{x}}", type: stream, columns: {n: int}}
deep: {pattern: "d:{id}:{rest*}", type: set}
plain: {pattern: "p:{id}", type: zset, rows: {}}"""
    )
    assert found.entities["raw"].value == "text"
    assert found.entities["raw"].debounce_s == 0.5
    assert found.databases_of(found.entities["typed"]) == (1, 2)
    assert found.entities["text"].redis_type == "string"
    assert found.entities["one"].row_parts == {"member": "who", "score": "score"}
    assert found.entities["log"].row_parts == {"id": "id"}
    assert found.entities["deep"].key_parts == ("id", "rest")
    assert found.entities["plain"].row_parts == {"member": "member", "score": "score"}
    assert found.entities["deep"].row_parts == {}


HASH = 'pattern: "a:{id}", type: hash'


@pytest.mark.parametrize(
    ("entity", "words"),
    [
        ("{type: hash}", ["either `pattern` and `type`, or `pivot`"]),
        ('{key: "user:{id}", type: hash}', ["e.key: is for types", 'write `pattern: "user:{id}"`']),
        ('{pattern: "a:{id}"}', ["`pattern` needs `type`"]),
        ('{pattern: "a:{id}", type: hsh}', ["'hsh' is not one of the choices", "'hash'"]),
        ('{pattern: "", type: hash}', ["the pattern '' is empty"]),
        ('{pattern: "a:{id", type: hash}', ["has a '{' without its '}' at character 3", "itself is {{"]),
        ('{pattern: "a:id}", type: hash}', ["has a '}' without its '{' at character 5", "itself is }}"]),
        ('{pattern: "a:{i d}", type: hash}', ["{i d}: a part's name is letters"]),
        ('{pattern: "a:{}", type: hash}', ["{}: a part's name is letters"]),
        ('{pattern: "{a}{b}", type: hash}', ["has nothing between two parts, at {b}"]),
        ('{pattern: "{a}:{a}", type: hash}', ["has the part {a} twice"]),
        ('{pattern: "{a}:{b}:{c}:{d}:{e}:{f}:{g}:{h}:{i}", type: hash}', ["has 9 parts, more than 8"]),
        ('{pattern: "a", type: hash}', ["'a' has no named part, so its rows would have no key"]),
        (
            '{pattern: "a:{_tailrace_x}", type: hash, columns: {_tailrace_x: int}}',
            ["is a name of Tailrace's own"],
        ),
        (f"{{{HASH}, columns: {{id: int}}}}", ["two columns are called 'id'"]),
        (f"{{{HASH}, columns: {{n: int}}, expires_at: n}}", ["two columns are called 'n'"]),
        (f"{{{HASH}, databases: [0, 1], columns: {{db: int}}}}", ["two columns are called 'db'"]),
        (f"{{{HASH}, databases: [1, 1]}}", ["a database is named twice"]),
        (f"{{{HASH}, databases: [-1]}}", ["databases"]),
        (f"{{{HASH}, key: {{idd: int}}}}", ["there is no part 'idd'", "did you mean 'id'?"]),
        (f"{{{HASH}, key: {{id: float}}}}", ["is not one of the choices", "'text', 'int' or 'bytes'"]),
        (f"{{{HASH}, columns: {{n: integer}}}}", ["'integer' is not one of the choices", "'int'"]),
        (
            f"{{{HASH}, columns: {{n: {{cast: int, naive_is: UTC}}}}}}",
            ["`naive_is` is for cast: timestamptz"],
        ),
        (f"{{{HASH}, columns: {{n: {{cast: timestamptz, naive_is: Mars}}}}}}", ["'Mars' is not a time zone"]),
        (f'{{{HASH}, columns: {{n: {{hash: "b:{{id}}"}}}}}}', ["another key is a pivot's"]),
        (f"{{{HASH}, rows: {{member: m}}}}", ["a hash has no 'member'", "field, value"]),
        (
            '{pattern: "a:{id}", type: string, rows: {member: m}}',
            ["a string has no `rows`", "a string is one row"],
        ),
        ('{pattern: "a:{id}", type: json, rows: {}}', ["e.rows: a json has no `rows`", "is one row"]),
        (f"{{{HASH}, rows: }}", ["e.rows: must hold keys"]),
        ('{pivot: id, rows: {}, columns: {a: {string: "a:{id}"}}}', ["a pivot has no `rows`"]),
        (f"{{{HASH}, value: int}}", ["`value` is for a string, not a hash"]),
        ('{pattern: "a:{id}", type: json, value: int}', ["type: json has its value"]),
        ('{pattern: "a:{id}", type: string, columns: {n: int}}', ["a string has no column 'n'"]),
        (
            '{pattern: "a:{id}", type: zset, rows: {member: m}, columns: {n: int}}',
            ["a zset has no column 'n'"],
        ),
        (
            '{pattern: "a:{id}", type: zset, rows: {member: m}, columns: {m: float}}',
            ["does not keep keys apart", "write one of text, int, bytes"],
        ),
        (
            '{pattern: "a:{id}", type: list, rows: {index: n}, columns: {n: text}}',
            ["does not keep keys apart", "it is a number"],
        ),
        ('{pattern: "a:{id}", type: zset, rows: {member: m, score: m}}', ["two columns are called 'm'"]),
        (
            '{pattern: "a:{id}", type: stream}',
            [
                "entities.one.pattern",
                "the part 'id' has the name that a stream's rows give to their id",
                "give the pattern's part another name, or the column: rows: {id: ...}",
            ],
        ),
        ('{pattern: "a", type: stream, rows: {fields: f}, columns: {n: int}}', ["`rows` keeps them whole"]),
        (f"{{{HASH}, exists: {{any: [n]}}}}", ["`exists` is a pivot's"]),
        (f"{{{HASH}, debounce: soon}}", ["is not a duration"]),
        (f"{{{HASH}, patern: x}}", ["unknown key 'patern'", "did you mean 'pattern'?"]),
        ("{pivot: id}", ["a pivot has no columns"]),
        ('{pivot: id, type: hash, columns: {a: {string: "a:{id}"}}}', ["a pivot has no `type`"]),
        ("{pivot: id, columns: {a: int}}", ["comes out of one key"]),
        ('{pivot: id, columns: {a: {string: "a:{id}", zset: b}}}', ["comes out of one key"]),
        ('{pivot: id, columns: {a: {string: "a:{user}"}}}', ["has another part than the pivot's {id}"]),
        ('{pivot: id, columns: {a: {string: "a"}}}', ["'a' is one key for all rows", "put {id} into it"]),
        ('{pivot: id, columns: {a: {hash: "a:{id}"}}}', ["'a:{id}' names no field"]),
        ('{pivot: id, columns: {a: {zset: "a:{id}"}}}', ["'a:{id}' names no member"]),
        ("{pivot: id, columns: {a: {zset: a, field: x}}}", ["the member of 'a' is the row's id"]),
        ('{pivot: id, columns: {a: {string: "a:{id}", field: x}}}', ["a string has no fields"]),
        ("{pivot: id, exists: {any: [b]}, columns: {a: {zset: a}}}", ["there is no column 'b'"]),
        ("{pivot: a, columns: {a: {zset: x}}}", ["two columns are called 'a'"]),
        ('{pivot: "a b", columns: {a: {zset: x}}}', ["'a b' cannot be a part"]),
    ],
)
def test_mistakes_of_one_entity(entity: str, words: list[str]) -> None:
    message = mistake(f"one: {entity}")
    assert "t.yaml:8" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("a:{id}", "a:{id}", True),
        ("a:{id}", "a:b", True),
        ("a:{id}", "{x}:b", True),
        ("a:{id}", "a:{id}:b", False),
        ("a:{id*}", "a:{id}:b", True),
        ("a:{id}", "ab:{id}", False),
        ("a:{x}-{y}", "a:b-{z}", True),
        ("{x*}:end", "start:{y*}", True),
        ("{x}:end", "start:{y}:{z}", False),
        ("a*{id}", "a{id}", True),
        ("a*", "ab", False),
    ],
)
def test_a_key_is_one_entitys(one: str, other: str, clash: bool) -> None:
    entities = f'one: {{pattern: "{one}", type: zset, rows: {{member: m}}}}\n'
    entities += f'two: {{pattern: "{other}", type: zset, rows: {{member: m}}}}'
    if clash:
        message = mistake(entities)
        assert f"a key may fit both 'one' ({one}) and 'two' ({other})" in message
        assert "t.yaml:9" in message
        source(entities.replace("type: zset", "type: zset, databases: [1]", 1))
    else:
        source(entities)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("message", "is Tailrace's own"),
        ("_x", "is Tailrace's own"),
        ("a.b", "is not an entity's name"),
        ("A", "differ only in case"),
    ],
)
def test_names_of_entities(name: str, words: str) -> None:
    assert words in mistake(
        f'a: {{pattern: "a:{{id}}", type: hash}}\n{name}: {{pattern: "b:{{id}}", type: hash}}'
    )


def test_databases_of_the_source_name_a_column_too() -> None:
    message = mistake('a: {pattern: "a:{db}", type: hash}', "databases: [0, 1]")
    assert "two columns are called 'db'" in message
    source('a: {pattern: "a:{db}", type: hash}', "databases: [1]")
