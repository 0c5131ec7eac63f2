"""`tailrace why`: each thing that can be between a row and its copy."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.harness.pipeline import Pipeline, execute

ITEM = (
    "CREATE TABLE item (id int PRIMARY KEY, name text, price numeric, score float8)",
    "INSERT INTO item SELECT n, 'item ' || n, n, n + 0.5 FROM generate_series(1, 10) n",
    "CREATE TABLE pair (a int, b text, PRIMARY KEY (a, b))",
    "INSERT INTO pair VALUES (1, 'x')",
    'CREATE TABLE "it\'s ""item""" (id int PRIMARY KEY)',
)


async def why(pipeline: Pipeline, table: str, key: str) -> tuple[int, dict[str, Any]]:
    code, out = await pipeline.run("why", table, key, "--json")
    assert out.startswith("["), out
    (answer,) = json.loads(out)
    return code, answer


@pytest.mark.thorough
async def test_where_a_row_is(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *ITEM)
    _, apply = await pipeline.start_both()
    code, answer = await why(pipeline, "public.item", "7")
    assert (code, answer["state"], answer["key"]) == (0, "equal", {"id": 7})
    assert answer["source_row"]["values"] == {"id": "7", "name": "item 7", "price": "7", "score": "7.5"}
    assert [event["value"]["op"] for event in answer["events"]] == ["r"]
    code, answer = await why(pipeline, f"{pipeline.source}.public.pair", '[1, "x"]')
    assert (code, answer["state"], answer["key"]) == (0, "equal", {"a": 1, "b": "x"})

    await execute(pipeline.target_url, "UPDATE mirror.item SET price = 8 WHERE id = 7")
    code, out = await pipeline.run("why", "item", "7")
    assert code == 1
    assert "DIFFERENT: the rows differ in price" in out
    assert "price=7" in out
    assert "price=8" in out
    assert "tailrace reconcile mirror --dry-run" in out

    assert await apply.stop() == 0
    await execute(pipeline.source_url, "UPDATE item SET name = 'later' WHERE id = 3")
    await pipeline.captured()
    code, answer = await why(pipeline, "item", "3")
    assert (code, answer["state"]) == (0, "on_its_way")
    assert [event["value"]["op"] for event in answer["events"]] == ["r", "u"]

    code, out = await pipeline.run("why", "item", "three")
    assert (code, "an integer was expected, not 'three'" in out) == (64, True), out
    code, out = await pipeline.run("why", "itme", "3")
    assert (code, "did you mean 'item'" in out) == (64, True), out
    code, out = await pipeline.run("why", 'it\'s "itm"', "3")
    words = shlex.split(out.partition("did you mean ")[2].strip().removesuffix("?"))
    assert (code, words) == (64, ['it\'s "item"']), out
