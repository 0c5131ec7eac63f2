"""The shadow's file: thrown away when it is another's or torn, locked for one; its records; many rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.errors import DecodeError, FatalError
from streamer.redis import shadow_records
from streamer.redis.shadow import LISTED_ROWS, Changed, Shadow
from streamer.redis.shadow_file import Stamp
from streamer.redis.shadow_records import Place, digest_of

ZSET = Place("scores", 0, b"board", b'{"who":', False)
KEY = Place("keys", 0, b"k:1", b'{"id":"1"}', True)


def place_of(entity: str, db: int, key: bytes) -> Place | None:
    if entity == "keys":
        return Place("keys", db, key, b'{"id":"%b"}' % key[2:], True)
    return ZSET if (entity, db, key) == ZSET[:3] else None


def opened(path: Path, *, cluster: str = "c", fingerprint: str = "f") -> Shadow:
    return Shadow(path, cluster=cluster, fingerprint=fingerprint, place_of=place_of)


def row(number: int, score: int = 0) -> tuple[bytes, bytes]:
    return b'{"who":"u%06d"}' % number, b'{"who":"u%06d","score":%d}' % (number, score)


def filled(path: Path) -> None:
    shadow = opened(path)
    shadow.diff_keys([(KEY, b'{"id":"1","value":1}')])
    shadow.committed(1, 10)
    shadow.close()


def test_a_copy_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "made" / "s.db"
    filled(path)
    shadow = opened(path)
    assert shadow.stamp == Stamp(10, 1)
    assert shadow.diff_keys([(KEY, b'{"id":"1","value":1}')]) == []
    (change,) = shadow.diff_keys([(KEY, b'{"id":"1","value":2}')])
    assert change == Changed(KEY, KEY.head, b'{"id":"1","value":2}', digest_of(b'{"id":"1","value":2}'), True)
    shadow.close()


@pytest.mark.parametrize("other", [{"cluster": "d"}, {"fingerprint": "g"}])
def test_a_copy_of_another_kafka_or_config_is_made_anew(tmp_path: Path, other: dict[str, str]) -> None:
    filled(tmp_path / "s.db")
    shadow = opened(tmp_path / "s.db", **other)
    assert shadow.stamp is None
    (change,) = shadow.diff_keys([(KEY, b'{"id":"1","value":1}')])
    assert not change.was_there
    shadow.close()


@pytest.mark.parametrize("cut", [0, 100, 9000])
def test_a_torn_file_is_made_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "s.db"
    filled(path)
    path.write_bytes(b"\xff" * cut)
    shadow = opened(path)
    assert shadow.stamp is None
    shadow.diff_keys([(KEY, b"{}")])
    shadow.committed(1, 1)
    shadow.close()


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    shadow = opened(tmp_path / "s.db")
    with pytest.raises(FatalError, match="another program has the shadow's file open"):
        opened(tmp_path / "s.db")
    shadow.close()
    opened(tmp_path / "s.db").close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match="the shadow's file cannot be used"):
        opened(tmp_path / "file" / "s.db")


def test_many_members_chunk_by_chunk(tmp_path: Path) -> None:
    count = 2 * LISTED_ROWS + 777
    shadow = opened(tmp_path / "s.db")
    for start in range(0, count, 999):
        marks = shadow.begin_members()
        shadow.diff_members(ZSET, dict(row(n) for n in range(start, min(start + 999, count))), marks)
    shadow.committed(1, 1)
    shadow.diff_members(ZSET, dict(row(n) for n in range(count, count + 5)), shadow.begin_members())
    walk, marks = shadow.begin_pass(), shadow.begin_members()
    gone = {7, LISTED_ROWS, count - 1, count + 2}
    changes: list[Changed] = []
    met = [n for n in range(count + 5) if n not in gone]
    for start in range(0, len(met), 1001):
        chunk = dict(row(n, score=1 if n == 50 else 0) for n in met[start : start + 1001])
        changes += shadow.diff_members(ZSET, chunk, marks)
    candidates = [key for keys in shadow.members_not_seen(ZSET, marks) for key in keys]
    assert candidates == [row(n)[0] for n in sorted(gone)]
    changes += shadow.gone(ZSET, candidates)
    assert [(c.row_key, c.row is None) for c in changes] == [
        (row(50)[0], False),
        *((row(n)[0], True) for n in sorted(gone)),
    ]
    assert list(shadow.keys_not_seen(walk)) == []
    shadow.committed(2, 2)
    assert len(shadow.diff(ZSET, {})) == len(met)
    shadow.close()


def test_keys_that_a_pass_does_not_meet(tmp_path: Path) -> None:
    shadow = opened(tmp_path / "s.db")
    keys = [Place("keys", 0, b"k:%d" % n, b'{"id":"%d"}' % n, True) for n in range(100)]
    shadow.diff_keys([(place, place.head) for place in keys])
    shadow.diff(ZSET, dict([row(1)]))
    shadow.committed(1, 1)
    walk = shadow.begin_pass()
    shadow.diff_keys([(place, place.head) for place in keys[:98]])
    shadow.seen(keys[98])
    assert [p for places in shadow.keys_not_seen(walk) for p in places] == [keys[99], ZSET]
    shadow.end_pass(walk)
    walk = shadow.begin_pass()
    shadow.diff(keys[3], {}, keep=[keys[3].head])
    shadow.seen(ZSET)
    found = [p for places in shadow.keys_not_seen(walk) for p in places]
    assert keys[3] not in found
    assert ZSET not in found
    assert len(found) == 99
    shadow.close()


def test_rows_of_another_config_are_found_and_can_be_taken_away(tmp_path: Path) -> None:
    """An entity that is no more, and a key whose row had another key: rows under their full keys."""
    path = tmp_path / "s.db"
    shadow = opened(path)
    lost, renamed = Place("lost", 0, b"x", b"", True), Place("keys", 0, b"k:1", b"", True)
    value = shadow_records.dump_value(3, -5)
    records = [(shadow_records.dump_key(place, b'{"old":1}'), value) for place in (lost, renamed)]
    shadow.load(records, 2, 0)
    assert shadow.stamp is None, "gathered"
    shadow.loaded(2, 0)
    assert shadow.stamp == Stamp(2, 0)
    found = [p for places in shadow.keys_not_seen(shadow.begin_pass()) for p in places]
    assert found == [Place("lost", 0, b"x", b"", False), Place("keys", 0, b"k:1", b"", False)]
    for place in found:
        (change,) = shadow.diff(place, {})
        assert (change.row_key, change.row) == (b'{"old":1}', None)
    shadow.committed(1, 5)
    assert list(shadow.keys_not_seen(shadow.begin_pass())) == []
    shadow.load([(records[0][0], None)], 6, 1)
    shadow.loaded(7, 1)
    assert shadow.stamp == Stamp(7, 1)
    shadow.close()


def test_numbers_of_deleted_rows_are_given_again(tmp_path: Path) -> None:
    shadow = opened(tmp_path / "s.db")
    for flush in range(200):
        shadow.diff_keys([(KEY, b"1")])
        shadow.committed(2 * flush, 2 * flush)
        shadow.diff_keys([(KEY, None)])
        shadow.committed(2 * flush + 1, 2 * flush + 1)
    marks = shadow.begin_pass().rows
    shadow.diff_keys([(KEY, b"1")])
    assert any(number in marks for number in range(3)), "the marks stay small"
    shadow.close()


def test_records() -> None:
    key = shadow_records.dump_key(Place("e", 2, b"k\xff", b"", True), '{"id":"é"}'.encode())
    assert key == '{"entity":"e","db":2,"key":"a/8=","row":"{\\"id\\":\\"é\\"}"}'.encode()
    assert shadow_records.load_key(key) == ("e", 2, b"k\xff", '{"id":"é"}'.encode())
    for digest in (0, 1, -1, 2**63 - 1, -(2**63)):
        value = shadow_records.dump_value(7, digest)
        assert shadow_records.load_value(value) == (7, digest)
    assert shadow_records.dump_value(7, 1) == b'{"epoch":7,"digest":"0000000000000001"}'


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"entity":"e","db":0,"key":"!","row":""}'])
def test_keys_of_records_that_are_none(raw: bytes) -> None:
    with pytest.raises(DecodeError, match=r"t\[0\]@1: the key is none of a shadow"):
        shadow_records.load_key(raw, "t[0]@1")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"epoch":1,"digest":"00"}', b'{"epoch":1,"digest":"zz"}'])
def test_values_of_records_that_are_none(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="the value is none of a shadow"):
        shadow_records.load_value(raw)
