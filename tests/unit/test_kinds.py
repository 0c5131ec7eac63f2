"""Every type of the format's table, in both directions, odd values included."""

from __future__ import annotations

import orjson
import pytest

from streamer.changes.kinds import TypeFacts, decoder_for, encoder_for, kind_of
from streamer.errors import BadRecordError

BOTH_WAYS = [
    ("number", "0", "0"),
    ("number", "-32768", "-32768"),
    ("number", "9223372036854775807", "9223372036854775807"),
    ("number", "-9223372036854775808", "-9223372036854775808"),
    ("number", "4294967295", "4294967295"),
    ("float", "1.5", "1.5"),
    ("float", "0.1", "0.1"),
    ("float", "1e+22", "1e+22"),
    ("float", "1.7976931348623157e+308", "1.7976931348623157e+308"),
    ("float", "5e-324", "5e-324"),
    ("float", "NaN", '"NaN"'),
    ("float", "Infinity", '"Infinity"'),
    ("float", "-Infinity", '"-Infinity"'),
    ("bool", "t", "true"),
    ("bool", "f", "false"),
    ("numeric", "123.4500", '"123.4500"'),
    ("numeric", "NaN", '"NaN"'),
    ("numeric", "-Infinity", '"-Infinity"'),
    ("numeric", "1" * 200 + "." + "2" * 200, '"' + "1" * 200 + "." + "2" * 200 + '"'),
    ("text", "", '""'),
    ("text", 'a"b\\c\n\t\r\b\f\x01\x7f/', '"a\\"b\\\\c\\n\\t\\r\\b\\f\\u0001\x7f/"'),
    ("text", "größe 東京 🜁 \u2028", '"größe 東京 🜁 \u2028"'),
    ("bytea", "\\x", '""'),
    ("bytea", "\\x00ff0a", '"AP8K"'),
    ("json", '{"a": "\\u0000", "b":  1}', '"{\\"a\\": \\"\\\\u0000\\", \\"b\\":  1}"'),
    ("json", "null", '"null"'),
    ("hstore", "", '"{}"'),
    ("hstore", '"a"=>"1", "b"=>NULL', '"{\\"a\\":\\"1\\",\\"b\\":null}"'),
    ("hstore", '"a\\"b"=>"c\\\\d", ""=>"=>, NULL"', None),
    ("date", "2016-11-04", '"2016-11-04"'),
    ("date", "infinity", '"infinity"'),
    ("date", "0044-03-15 BC", '"0044-03-15 BC"'),
    ("date", "5874897-12-31", '"5874897-12-31"'),
    ("time", "13:51:30.123456", '"13:51:30.123456"'),
    ("time", "24:00:00", '"24:00:00"'),
    ("timestamp", "2016-11-04 13:51:30.123456", '"2016-11-04T13:51:30.123456Z"'),
    ("timestamp", "2016-11-04 13:51:30", '"2016-11-04T13:51:30Z"'),
    ("timestamp", "0044-03-15 12:00:00.5 BC", '"0044-03-15T12:00:00.5Z BC"'),
    ("timestamp", "294276-12-31 23:59:59.999999", '"294276-12-31T23:59:59.999999Z"'),
    ("timestamp", "-infinity", '"-infinity"'),
    ("timestamptz", "2016-11-04 11:51:30.123456+00", '"2016-11-04T11:51:30.123456Z"'),
    ("timestamptz", "4714-11-24 00:00:00+00 BC", '"4714-11-24T00:00:00Z BC"'),
    ("timestamptz", "infinity", '"infinity"'),
    ("timetz", "11:51:30.123789+00", '"11:51:30.123789Z"'),
    ("timetz", "11:51:30+02:30", '"11:51:30+02:30"'),
    ("timetz", "24:00:00-15:59:59", '"24:00:00-15:59:59"'),
    ("interval", "P1Y2M3DT4H5M6.78S", '"P1Y2M3DT4H5M6.78S"'),
    ("interval", "P-1Y-2M3DT-4H-5M-6.78S", '"P-1Y-2M3DT-4H-5M-6.78S"'),
    ("interval", "PT0S", '"PT0S"'),
    ("bit1", "1", "true"),
    ("bit1", "0", "false"),
    ("bits", "0101", '"0101"'),
    ("bits", "", '""'),
    ("vector", "[1,2.5,-1e-05]", None),
    ("array:number", "{}", "[]"),
    ("array:number", "{1,NULL,-3}", "[1,null,-3]"),
    ("array:number", "{{1,2},{NULL,4}}", "[[1,2],[null,4]]"),
    ("array:number", "{{{{{{1}}}}}}", "[[[[[[1]]]]]]"),
    ("array:number", "[2:4]={1,2,3}", '"[2:4]={1,2,3}"'),
    ("array:number", "[0:0][-1:0]={{1,2}}", '"[0:0][-1:0]={{1,2}}"'),
    ("array:text", '{a,"",NULL,"NULL","null","a,b","{","q\\"\\\\"," x",ü}', None),
    ("array:text", '{"[2:4]={1}"}', '["[2:4]={1}"]'),
    ("array:bool", "{t,f}", "[true,false]"),
    ("array:numeric", "{1.50,NaN}", '["1.50","NaN"]'),
    ("array:bytea", '{"\\\\x00ff"}', '["AP8="]'),
    ("array:json", '{"{\\"a\\": 1}",NULL,"null"}', None),
    ("array:timestamptz", '{"2016-11-04 11:51:30+00",infinity}', '["2016-11-04T11:51:30Z","infinity"]'),
    ("array:bits", "{01,10}", '["01","10"]'),
]


@pytest.mark.parametrize(("kind", "text", "json"), BOTH_WAYS)
def test_text_becomes_json_and_the_same_text_again(kind: str, text: str, json: str | None) -> None:
    encoded = encoder_for(kind)(text.encode())
    if json is not None:
        assert encoded.decode() == json
    assert decoder_for(kind)(orjson.loads(encoded)) == text


@pytest.mark.parametrize(
    ("kind", "text", "json", "back"),
    [
        ("money", "$1,234.11", '"1234.11"', "1234.11"),
        ("money", "-$92,233,720,368,547,758.08", '"-92233720368547758.08"', "-92233720368547758.08"),
        ("float", "-0", "-0.0", "-0.0"),
        ("vector", "[-0,-0.5,1,-0]", "[-0.0,-0.5,1,-0.0]", "[-0.0,-0.5,1,-0.0]"),
        ("array:float", "{NaN,1.5,-0,-Infinity}", '["NaN",1.5,-0.0,"-Infinity"]', "{NaN,1.5,-0.0,-Infinity}"),
        ("array:money", '{"$1,234.11",$5.00}', '["1234.11","5.00"]', "{1234.11,5.00}"),
        ("array:text", '{"NULLs"}', '["NULLs"]', "{NULLs}"),
    ],
)
def test_text_that_comes_back_in_another_spelling_of_the_same_value(
    kind: str, text: str, json: str, back: str
) -> None:
    encoded = encoder_for(kind)(text.encode())
    assert encoded.decode() == json
    assert decoder_for(kind)(orjson.loads(encoded)) == back


def test_hstore_travels_as_an_object_in_a_string() -> None:
    encoded = encoder_for("hstore")(b'"a\\"b"=>"c\\\\d", "n"=>NULL, ""=>"=>, NULL"')
    assert orjson.loads(orjson.loads(encoded)) == {'a"b': "c\\d", "n": None, "": "=>, NULL"}


def test_array_of_text_keeps_null_apart_from_the_word() -> None:
    encoded = encoder_for("array:text")(b'{NULL,"NULL","null",nil}')
    assert orjson.loads(encoded) == [None, "NULL", "null", "nil"]
    assert decoder_for("array:text")(["NULL", "null", None, "nil"]) == '{"NULL","null",NULL,nil}'


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("number", b""),
        ("number", b"1.5"),
        ("number", b"01"),
        ("number", b"--1"),
        ("float", b"infinity"),
        ("float", b".5"),
        ("float", b"1_0"),
        ("bool", b"true"),
        ("bit1", b"01"),
        ("text", b"\xff"),
        ("text", b"\xed\xa0\x80"),
        ("json", b"\xc3"),
        ("bytea", b"abc"),
        ("bytea", b"\\x0"),
        ("bytea", b"\\xzz"),
        ("timestamptz", b"2016-11-04 13:51:30+02"),
        ("timestamptz", b""),
        ("hstore", b'"a"=>1'),
        ("hstore", b'"a"=>"1""b"=>"2"'),
        ("vector", b"[1,,2]"),
        ("vector", b"[NaN]"),
        ("array:number", b""),
        ("array:number", b"{"),
        ("array:number", b"{1"),
        ("array:number", b"{1,}"),
        ("array:number", b"{,1}"),
        ("array:number", b"{1}x"),
        ("array:number", b"{{1},{2}"),
        ("array:number", b"{{{{{{{1}}}}}}}"),
        ("array:number", b"{a}"),
        ("array:number", b"{{}}"),
        ("array:text", b'{"a}'),
        ("array:text", b'{"a"b}'),
        ("array:text", b"{a\\b}"),
        ("array:text", b"{" * 5000),
    ],
)
def test_malformed_text_is_a_value_error(kind: str, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        encoder_for(kind)(text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("number", True),
        ("number", 1.5),
        ("number", "1"),
        ("float", False),
        ("float", None),
        ("bool", 1),
        ("bit1", "1"),
        ("numeric", 1),
        ("text", None),
        ("text", {}),
        ("bytea", "=="),
        ("bytea", "ä"),
        ("bytea", 1),
        ("timestamp", 1),
        ("timestamptz", []),
        ("timetz", 1),
        ("hstore", "[]"),
        ("hstore", "{"),
        ("hstore", '{"a":1}'),
        ("hstore", {}),
        ("vector", "[1]"),
        ("vector", [None]),
        ("array:number", {}),
        ("array:number", ["1"]),
        ("array:number", [[[[[[[1]]]]]]]),
    ],
)
def test_a_value_of_another_shape_is_a_bad_record(kind: str, value: object) -> None:
    with pytest.raises(BadRecordError):
        decoder_for(kind)(value)


@pytest.mark.parametrize("kind", ["", "dec", "array:", "array:dec"])
def test_a_kind_of_a_later_program_is_refused_by_name(kind: str) -> None:
    for find in (encoder_for, decoder_for):
        with pytest.raises(BadRecordError, match="not known to this program"):
            find(kind)


TYPES = {
    facts.oid: facts
    for facts in (
        TypeFacts(25, "text", "b", 0, -1, 0, ","),
        TypeFacts(1186, "interval", "b", 0, -1, 0, ","),
        TypeFacts(1187, "_interval", "b", 0, -1, 1186, ","),
        TypeFacts(603, "box", "b", 0, -1, 0, ";"),
        TypeFacts(1020, "_box", "b", 0, -1, 603, ";"),
        TypeFacts(1560, "bit", "b", 0, -1, 0, ","),
        TypeFacts(1561, "_bit", "b", 0, -1, 1560, ","),
        TypeFacts(22, "int2vector", "b", 0, -1, 0, ","),
        TypeFacts(1007, "_int4", "b", 0, -1, 23, ","),
        TypeFacts(1009, "_text", "b", 0, -1, 25, ","),
        TypeFacts(50001, "hstore", "b", 0, -1, 0, ","),
        TypeFacts(50002, "vector", "b", 0, -1, 0, ","),
        TypeFacts(50003, "_vector", "b", 0, -1, 50002, ","),
        TypeFacts(50004, "hstore", "e", 0, -1, 0, ","),
        TypeFacts(50010, "positive", "d", 23, -1, 0, ","),
        TypeFacts(50011, "more", "d", 50010, -1, 0, ","),
        TypeFacts(50012, "_more", "b", 0, -1, 50011, ","),
        TypeFacts(50013, "flag", "d", 1560, 1, 0, ","),
        TypeFacts(50014, "ints", "d", 1007, -1, 0, ","),
        TypeFacts(50015, "_ints", "b", 0, -1, 50014, ","),
        TypeFacts(50016, "loop", "d", 50016, -1, 0, ","),
        TypeFacts(50017, "pair", "c", 0, -1, 0, ","),
        TypeFacts(50018, "_pair", "b", 0, -1, 50017, ","),
    )
}


@pytest.mark.parametrize(
    ("oid", "typmod", "kind"),
    [
        (20, -1, "number"),
        (1700, 786438, "numeric"),
        (3802, -1, "json"),
        (25, -1, "text"),
        (1560, 1, "bit1"),
        (1560, 8, "bits"),
        (1560, -1, "bits"),
        (1561, 1, "array:bit1"),
        (1562, 1, "bits"),
        (1007, -1, "array:number"),
        (1009, -1, "array:text"),
        (1187, -1, "text"),
        (1020, -1, "text"),
        (22, -1, "text"),
        (50001, -1, "hstore"),
        (50002, 3, "vector"),
        (50003, -1, "text"),
        (50004, -1, "text"),
        (50010, -1, "number"),
        (50011, -1, "number"),
        (50012, -1, "array:number"),
        (50013, -1, "bit1"),
        (50014, -1, "array:number"),
        (50015, -1, "array:text"),
        (50016, -1, "text"),
        (50017, -1, "text"),
        (50018, -1, "array:text"),
        (99999, -1, "text"),
    ],
)
def test_kind_of_a_type(oid: int, typmod: int, kind: str) -> None:
    assert kind_of(oid, typmod, TYPES) == kind
