"""What an import path of the config may name, and what derived rows look like."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from consumers.processors import Agent, Change, Given, agent, definition_of, table
from consumers.processors.change import decode
from consumers.processors.shapes import Shapes, declared, dumps, inferred, whole
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import BadRecordError, ConfigError

MODULE = "tests.processors.agents"


def test_an_agent_is_found(tmp_path: Path) -> None:
    found = definition_of(f"{MODULE}:large", folder=tmp_path)
    assert isinstance(found, Agent)
    assert (found.columns(Given("made", (), "out", ())), found.is_stream) == ({"n": "int"}, False)
    record = SchemaRecord("shop", "public", "orders", "d", (Column("n", "date", -1, "date", False),))
    given = Given("made", ("orders",), "out", (), {"orders": [record]})
    assert definition_of(f"{MODULE}:doubled", folder=tmp_path).columns(given) == {"n": "date"}
    assert found.columns(given) == {"n": "int"}


def test_a_module_beside_the_config_is_found(tmp_path: Path) -> None:
    (tmp_path / "streams_of_mine.py").write_text(
        "from consumers.processors import agent\n\n@agent\ndef f(change):\n    return change.after\n"
    )
    assert isinstance(definition_of("streams_of_mine:f", folder=tmp_path), Agent)


@pytest.mark.parametrize(
    ("code", "what", "fix"),
    [
        ("no_such_module_here:f", "cannot be imported", "beside the config file"),
        (f"{MODULE}:larger", "has no function 'larger'", f"did you mean {MODULE}:large?"),
        (f"{MODULE}:bare", "is a function, and no agent", "write `@agent` above it"),
        ("streamer:DEFAULT_PATH", "PosixPath, and no agent", "name a function with `@agent`"),
        ("tests.processors.test_definitions:faust_agent", "Faust app of its own", "in place of `@app.agent`"),
    ],
)
def test_what_is_no_agent_is_refused_by_name(code: str, what: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        definition_of(code, folder=tmp_path, where="processors.made.agent")
    assert what in raised.value.what
    assert fix in raised.value.fix
    assert raised.value.where == "processors.made.agent"


@pytest.mark.parametrize(
    ("text", "line", "what", "fix"),
    [
        ("import json\n\njson.loads('{')\n", 3, "raises JSONDecodeError: Expecting", "correct "),
        ("1 / 0\n", 1, "raises ZeroDivisionError: division by zero", "correct "),
        ("import sys\nsys.exit(3)\n", 2, "raises SystemExit: 3", "stands below `if __name__ =="),
        (
            "import no_such_module_here\n",
            1,
            "raises ModuleNotFoundError",
            "has the module 'no_such_module_here'",
        ),
        ("\neval('(')\n", 2, "raises SyntaxError: '(' was never closed", "correct "),
        ("x = 1\ndef (:\n", 2, "raises SyntaxError: invalid syntax", "correct "),
    ],
)
def test_a_module_that_raises_is_told_by_its_line(
    text: str, line: int, what: str, fix: str, tmp_path: Path
) -> None:
    name = f"raises_at_{line}_of_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError, match=f"the module '{name}' cannot be imported") as raised:
        definition_of(f"{name}:f", folder=tmp_path, where="processors.made.agent")
    assert f"{tmp_path / name}.py:{line} {what}" in raised.value.what
    assert fix in raised.value.fix
    assert "looked for" not in raised.value.fix


def test_what_a_helper_refuses_keeps_its_cure(tmp_path: Path) -> None:
    (tmp_path / "refused_by_a_helper.py").write_text(
        "from consumers.processors import route\n\nby_status = route('status')\n"
    )
    with pytest.raises(ConfigError) as raised:
        definition_of("refused_by_a_helper:by_status", folder=tmp_path, where="processors.made.agent")
    assert raised.value.what == f"{tmp_path}/refused_by_a_helper.py:3: route(table): 'status' is no function"
    assert raised.value.fix == "write a function of one row, such as lambda row: row['status']"
    assert raised.value.where == "processors.made.agent"


@pytest.mark.parametrize(
    ("file", "code", "renamed"),
    [
        ("json.py", "json:f", "json.py"),
        ("select.py", "select:select", "select.py"),
        ("time.py", "time:f", "time.py"),
        ("pytest.py", "pytest:f", "pytest.py"),
        ("json/__init__.py", "json:f", "json"),
        ("streamer/agents.py", "streamer.agents:f", "streamer"),
    ],
)
def test_a_file_that_another_module_hides_is_named(
    file: str, code: str, renamed: str, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(ConfigError, match="which is found first") as raised:
        definition_of(code, folder=tmp_path, where="processors.made.agent")
    assert raised.value.what.startswith(f"{tmp_path / file} is hidden by the module ")
    assert raised.value.fix.startswith(f"give {tmp_path / renamed} another name")


def __getattr__(name: str) -> Any:
    if name == "faust_agent":  # made when it is asked for: Faust takes a second to import
        import faust

        @faust.App("other", broker="aiokafka://").agent()
        async def theirs(stream: Any) -> None: ...

        return theirs
    raise AttributeError(name)


def test_a_body_of_no_or_two_arguments_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 2 arguments"):

        @agent
        async def two(one: Any, other: Any) -> None: ...

    with pytest.raises(ConfigError, match="outside of an agent's body"):
        table("counts")


def shapes(**options: Any) -> tuple[Shapes, list[str]]:
    said: list[str] = []
    given: dict[str, Any] = {"types": {}, "inputs": {}, "known": [], **options}
    types = given.pop("types")
    return Shapes("made", "out", types=lambda: types, said=said.append, **given), said


def test_types_are_declared_inherited_or_inferred() -> None:
    record = SchemaRecord("shop", "public", "orders", "d", (Column("at", "date", -1, "date", False),))
    made, said = shapes(types={"total": "decimal(12, 2)", "at": "date"}, inputs={"orders": [record]})
    row = {"id": 1, "total": None, "at": "2024-01-01", "tags": ["a"], "later": None, "share": 0.5}
    shape = made.fit(None, 1, {"id": 1}, row)
    types = {c.name: (c.type, c.kind, c.key) for c in shape.record.columns}
    assert types == {
        "id": ("bigint", "number", True),
        "total": ("numeric(12, 2)", "numeric", False),
        "at": ("date", "date", False),
        "tags": ("jsonb", "json", False),
        "share": ("double precision", "float", False),
    }
    assert len(said) == 3  # id, tags, share
    after = whole(shape, {"id": 1}, {"total": "1.50"})
    assert after == {"id": 1, "total": "1.50", "at": None, "tags": None, "share": None}
    wider = made.fit(None, 1, {"id": 2}, {"later": True})
    assert [c.name for c in wider.record.columns][-1] == "later"
    assert made.fit(None, 1, {"id": 3}, {"share": 1.5}) is wider
    kept, said = shapes(known=[wider.record])
    assert kept.fit(None, 1, {"id": 4}, {"tags": None, "later": None}).record == wider.record
    assert said == []  # what is known of an earlier run stays


def test_rows_that_contradict_their_key_or_table_are_refused() -> None:
    made, _ = shapes()
    shape = made.fit(None, 1, {"id": 1}, {"id": 1, "n": 2})
    with pytest.raises(BadRecordError, match="its key says id = 1, and the row 2"):
        whole(shape, {"id": 1}, {"id": 2})
    with pytest.raises(BadRecordError, match="its key is n, and was id"):
        made.fit(None, 1, {"n": 1}, {"n": 1})
    with pytest.raises(BadRecordError, match="has no key"):
        made.fit("other", 1, {}, {"n": 1})


def test_values_are_written_as_the_envelope_has_them() -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5, 600, tzinfo=datetime.UTC)
    row = {"d": Decimal("1.50"), "t": moment, "l": datetime.date(2024, 1, 2)}
    assert orjson.loads(dumps(row)) == {"d": "1.50", "t": "2024-01-02T03:04:05.000600Z", "l": "2024-01-02"}
    with pytest.raises(BadRecordError, match="base64"):
        dumps({"b": b"raw"})


@pytest.mark.parametrize(
    ("given", "type_name", "kind"),
    [
        ("int", "integer", "number"),
        ("NUMERIC(12,2)", "numeric(12,2)", "numeric"),
        ("text[]", "text[]", "array:text"),
        ("timestamptz", "timestamp with time zone", "timestamptz"),
        ("uuid", "uuid", "text"),
        ("double  precision", "double precision", "float"),
    ],
)
def test_declared_types(given: str, type_name: str, kind: str) -> None:
    column = declared("c", given)
    assert (column.type, column.kind) == (type_name, kind)


def test_a_type_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no type"):
        declared("c", "numeric(12", where="processor made: column c")
    assert inferred("c", True).type == "boolean"


def test_h15_the_version_of_a_derived_event_is_its_offset() -> None:
    made, _ = shapes()
    shape = made.fit(None, 4, {"id": 1}, {"id": 1})
    template = shape.template.transaction(
        commit_us=5, xid=None, commit_lsn=None, previous_commit_lsn=None, now_us=6
    )
    change = decode("out", 0, 77, b'{"id":1}', template.create(b'{"id":1}', 0, 0))
    assert isinstance(change, Change)
    assert (change.version, change.source["connector"]) == ((4, 77, 0), "tailrace")
