"""Which source types fit which target types without losing a value."""

from __future__ import annotations

import pytest

from streamer.changes.fitting import fits_type


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("integer", "integer"),
        ("integer", "bigint"),
        ("smallint", "real"),
        ("integer", "numeric"),
        ("integer", "numeric(10,0)"),
        ("bigint", "numeric(21,2)"),
        ("real", "double precision"),
        ("numeric(10,2)", "numeric(12,2)"),
        ("numeric(10,2)", "numeric(12,4)"),
        ("numeric(10,2)", "numeric"),
        ("character varying(10)", "character varying(20)"),
        ("character varying(10)", "character varying"),
        ("character(3)", "character varying(3)"),
        ("uuid", "text"),
        ("mood", "citext"),
        ("point", "character varying"),
        ("timestamp(3) without time zone", "timestamp without time zone"),
        ("timestamp with time zone", "timestamp(6) with time zone"),
        ("date", "timestamp without time zone"),
        ("json", "jsonb"),
        ("integer[]", "bigint[]"),
        ("text[]", "text[]"),
        ("bit(3)", "bit varying(3)"),
        ("public.mood", "public.mood"),
    ],
)
def test_what_fits(source: str, target: str) -> None:
    assert fits_type(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("bigint", "integer"),
        ("bigint", "double precision"),
        ("integer", "real"),
        ("integer", "numeric(9,0)"),
        ("bigint", "numeric(20,2)"),
        ("numeric", "numeric(10,2)"),
        ("numeric(10,4)", "numeric(10,2)"),
        ("numeric(12,2)", "numeric(10,2)"),
        ("numeric(10,2)", "double precision"),
        ("double precision", "numeric(10,2)"),
        ("text", "character varying(20)"),
        ("character varying(20)", "character varying(10)"),
        ("character varying", "character varying(10)"),
        ("character varying(3)", "character(3)"),
        ("text", "integer"),
        ("uuid", "integer"),
        ("timestamp without time zone", "timestamp with time zone"),
        ("timestamp without time zone", "timestamp(0) without time zone"),
        ("timestamp with time zone", "date"),
        ("jsonb", "json"),
        ("integer[]", "integer"),
        ("integer", "integer[]"),
        ("bit(4)", "bit(3)"),
    ],
)
def test_what_does_not_fit(source: str, target: str) -> None:
    assert not fits_type(source, target)
