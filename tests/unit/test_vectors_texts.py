"""Texts of rows and their chunks, and what an embedding function may answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import pytest

from consumers.targets.vectors_model import Model
from consumers.targets.vectors_texts import Texts
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Chunk, Embedding, Flow
from streamer.embedding import vectors_of
from streamer.errors import BadRecordError, ConfigError


def flow_of(text: str, tokens: int = 0, overlap: int = 0, **keys: Any) -> Flow:
    chunk = {"chunk": Chunk(tokens=tokens, overlap=overlap)} if tokens else {}
    base = {"__name__": "notes", "from": "s.public.n", "to": "v", "embed": "a:b", "dimensions": 2}
    return Flow.model_validate({**base, "text": text, **chunk, **keys})


def parts(text: str, row: dict[str, Any], tokens: int = 0, overlap: int = 0) -> list[str]:
    return [piece.text for piece in Texts(flow_of(text, tokens, overlap)).cut(row, {}).pieces]


def test_a_template_is_filled_in() -> None:
    row = {"a": "x", "b": None, "n": 1.50, "t": True, "j": ["ä", 1]}
    assert parts("{a}{b}-{n} {t} {{{j}}}", row) == ['x-1.5 true {["ä",1]}']
    assert parts("{b}\n{b}", row) == [""]
    assert parts("{missing}", row) == [""]


def test_placeholders_take_what_is_stored() -> None:
    texts = Texts(flow_of("{a} {b}"))
    cut = texts.cut({"a": "new", "b": UNAVAILABLE}, {"a": "old", "b": "kept"})
    assert cut.pieces[0].text == "new kept"
    assert orjson.loads(cut.source) == {"a": "new", "b": "kept"}
    assert texts.cut({"a": "new", "b": UNAVAILABLE}, {}).pieces[0].text == "new "


def test_chunks_overlap_and_end_with_the_text() -> None:
    row = {"b": "one two,  three\nfour five"}
    assert parts("{b}", row, 6) == [row["b"]]
    assert parts("{b}", row, 3) == ["one two,", "three\nfour five"]
    assert parts("{b}", row, 3, 1) == ["one two,", ",  three\nfour", "four five"]
    assert parts("{b}", row, 1) == ["one", "two", ",", "three", "four", "five"]
    assert parts("{b}", {"b": "日本語 テキスト"}, 4) == ["日本語 テ", "キスト"]
    assert parts("{b}", {"b": "x" * 70}, 1) == ["x" * 32, "x" * 32, "x" * 6]


def test_a_hash_is_of_text_function_and_dimensions() -> None:
    def mark(text: str = "t", **keys: Any) -> str:
        return Texts(flow_of("{b}", **keys)).cut({"b": text}, {}).pieces[0].hash

    assert mark() == mark()
    assert len({mark(), mark("u"), mark(embed="a:c"), mark(dimensions=3)}) == 4


def test_lists_and_arrays_are_vectors() -> None:
    want = ["[1.0,2.5]", "[0.0,-1.0]"]
    given = [[1.0, 2.5], [0.0, -1.0]]
    for answer in (given, np.array(given), np.array(given, dtype=np.float32), map(tuple, given)):
        assert vectors_of(answer, ["a", "b"], 2, where="") == want
    half = np.array(given, dtype=np.float16)
    assert vectors_of(half, ["a", "b"], 2, where="") == want
    assert vectors_of([np.array(given).T[0]], ["a"], 2, where="") == ["[1.0,0.0]"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_the_texts_fault(number: float) -> None:
    first, second = vectors_of(np.array([[1.0, 1.0], [number, 1.0]]), ["a", "b"], 2, where="")
    assert first == "[1.0,1.0]"
    assert isinstance(second, BadRecordError)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (None, "it gave NoneType, and not a list of vectors"),
        ([], "it was given 1 texts and gave 0 vectors"),
        ([[1.0]], "a vector of 1 dimensions, and the flow says dimensions: 2"),
        ([["a", "b"]], "it gave list for a text, and not numbers"),
        ([[[1.0], [2.0]]], "it gave list for a text, and not numbers"),
        ([3.0], "it gave float for a text, and not numbers"),
        ([None], "it gave NoneType for a text, and not numbers"),
        ([{"a": 1, "b": 2}], "it gave dict for a text, and not numbers"),
    ],
)
def test_what_is_no_vector_is_named(answer: Any, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vectors_of(answer, ["a"], 2, where="here")
    assert what in str(caught.value)


async def test_the_rate_holds_texts_back() -> None:
    module = ModuleType("rated")
    module.__dict__["embed"] = lambda texts: [[1.0, 2.0] for _ in texts]
    sys.modules["rated"] = module
    try:
        limits = Embedding.model_validate({"texts": 2, "rate": "20/s"})
        model = Model(flow_of("{b}", embed="rated:embed"), limits, Path(__file__).parent)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        found = [text async for text, _ in model.embed(["a", "b", "c", "d", "e"])]
        assert found == ["a", "b", "c", "d", "e"]
        assert loop.time() - began_s >= 0.2  # the fifth comes when four have had their time
    finally:
        del sys.modules["rated"]
