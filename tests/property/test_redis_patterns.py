"""Key patterns of any bytes: reading a key and writing it again, overlap, and bytes as text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from streamer.redis.patterns import KeyPattern, Part, bytes_of, glob_covers, overlap, text_of

LETTERS = "ab:-*?[]\\^é{}"
literals = st.text(LETTERS, min_size=1, max_size=4)
SMALL_KEY = st.text("ab:-", max_size=7).map(str.encode)


@st.composite
def patterns(draw: st.DrawFn, alphabet: str = LETTERS) -> KeyPattern:
    """Literals and parts in turn, as text of the file."""
    count = draw(st.integers(0, 3))
    text = draw(st.text(alphabet, max_size=3)).replace("{", "{{").replace("}", "}}")
    for index in range(count):
        text += f"{{p{index}{draw(st.sampled_from(['', '*']))}}}"
        last = index == count - 1
        between = draw(st.text(alphabet, min_size=0 if last else 1, max_size=3))
        text += between.replace("{", "{{").replace("}", "}}")
    return KeyPattern(text or "k")


def glob_fits(glob: bytes, key: bytes) -> bool:
    """Redis's stringmatch for what we write: escapes and stars."""
    expression, at = b"", 0
    while at < len(glob):
        if glob[at : at + 1] == b"\\":
            expression += re.escape(glob[at + 1 : at + 2])
            at += 2
        else:
            expression += b".*" if glob[at : at + 1] == b"*" else re.escape(glob[at : at + 1])
            at += 1
    return re.fullmatch(expression, key, re.DOTALL) is not None


@given(patterns(), st.lists(st.binary(min_size=1, max_size=6), min_size=3, max_size=3))
def test_a_key_that_fits_reads_as_parts_that_give_it_again(pattern: KeyPattern, values: list[bytes]) -> None:
    key = pattern.format(values[: len(pattern.names)])
    found = pattern.match(key)
    if found is not None:
        assert pattern.format(found) == key
        assert pattern.key_of(found) == key
        assert all(found)
    parts = [token for token in pattern.tokens if isinstance(token, Part)]
    if all(part.any or b":" not in value for part, value in zip(parts, values, strict=False)):
        assert found is not None
    assert glob_fits(pattern.glob, key)


@given(patterns("ab:-"), SMALL_KEY)
def test_a_key_that_fits_is_in_the_glob(pattern: KeyPattern, key: bytes) -> None:
    if pattern.match(key) is not None:
        assert glob_fits(pattern.glob, key)


@given(patterns("ab:"), patterns("ab:"), st.data())
def test_two_patterns_overlap_when_a_key_fits_both(
    one: KeyPattern, other: KeyPattern, data: st.DataObject
) -> None:
    values = data.draw(
        st.lists(st.text("ab:", min_size=1, max_size=4).map(str.encode), min_size=3, max_size=3)
    )
    key = one.format(values[: len(one.names)])
    if one.match(key) is not None and other.match(key) is not None:
        assert overlap(one, other)
        assert overlap(other, one)


@given(patterns("ab:"), patterns("ab:"), st.lists(SMALL_KEY, max_size=30))
def test_patterns_that_do_not_overlap_share_no_key(
    one: KeyPattern, other: KeyPattern, keys: list[bytes]
) -> None:
    both = [key for key in keys if one.match(key) is not None and other.match(key) is not None]
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, other) or not both


@given(patterns("ab:"), patterns("ab:"), SMALL_KEY)
def test_a_glob_that_covers_another_fits_its_keys(one: KeyPattern, other: KeyPattern, key: bytes) -> None:
    if glob_covers(one, other) and glob_fits(other.glob, key):
        assert glob_fits(one.glob, key)


@given(st.text(LETTERS, min_size=1, max_size=8), st.text(LETTERS, max_size=8).map(str.encode))
def test_a_literal_fits_only_itself(text: str, key: bytes) -> None:
    pattern = KeyPattern(text.replace("{", "{{").replace("}", "}}"))
    assert glob_fits(pattern.glob, text.encode())
    assert glob_fits(pattern.glob, key) == (key == text.encode())
    assert (pattern.match(key) is not None) == (key == text.encode())


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_any_bytes_are_text_without_loss(one: bytes, other: bytes) -> None:
    assert bytes_of(text_of(one)) == one
    assert (text_of(one) == text_of(other)) == (one == other)
    assert "\0" not in text_of(one)
    text_of(one).encode()


@given(st.sampled_from([b"\\x00", b"\\x", b"\\xzz", b"\xff", b"\0", b"", "é".encode(), b"\\\\x61"]))
def test_the_escape_itself_is_escaped(raw: bytes) -> None:
    assert bytes_of(text_of(raw)) == raw
