"""Plain connection URLs are read as libpq reads them."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from streamer.config.conninfo import parts_of

_TEXTS = st.text(string.ascii_letters + string.digits + "-_.~!*$%@:/?#&=[], +'é", max_size=8)


@st.composite
def urls(draw: st.DrawFn) -> str:
    """URLs with and without each part, plain and odd."""
    scheme = draw(st.sampled_from(["postgres://", "postgresql://", "postgresq://", "POSTGRES://"]))
    user, password = draw(_TEXTS), draw(st.none() | _TEXTS)
    login = user if password is None else f"{user}:{password}"
    at = draw(st.sampled_from(["@", "@", "@", ""]))
    host = draw(st.sampled_from(["db.example-1.com", "10.0.0.1", "[::1]", "a,b", "", "%2Ftmp"]) | _TEXTS)
    port = draw(st.sampled_from(["", "", ":5432", ":", ":99999", ":5432,5433"]))
    database = draw(
        st.sampled_from(["/shop", "/", "", "/a-b.c", "/shop?sslmode=require", "/shop\n"]) | _TEXTS
    )
    return f"{scheme}{login}{at}{host}{port}{database}"


@given(urls())
@example("postgresql://u:p@h:5432/shop")
@example("postgres://u@h/shop")
@example("postgres://ü@h/shop")
@example("host=h dbname=shop password='a b'")
def test_a_url_is_read_as_libpq_reads_it(text: str) -> None:
    try:
        wanted = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except ProgrammingError:
        with pytest.raises(ValueError, match=r"^not a connection string$"):
            parts_of(text)
    else:
        assert parts_of(text) == wanted
