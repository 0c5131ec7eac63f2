"""What a real Postgres sends for each kind of change, through the decoder and the row encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
import pytest

from streamer.changes.kinds import UNAVAILABLE
from streamer.postgres.pgoutput import (
    AnyMessage,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from streamer.postgres.rows import RowEncoder

LONG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 81) i)"  # 2592 bytes, stored out of line


class Stream:
    """A table's messages since the last call, and its encoder made from the Relation message."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.rows: RowEncoder | None = None

    def read(self, key: tuple[str, ...] = ("id",)) -> list[tuple[AnyMessage, bytes]]:
        cursor = self.connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'p', 'messages', 'true')"
        )
        messages = [(decode(payload), payload) for (payload,) in cursor]
        for message, _ in messages:
            if isinstance(message, Relation):
                self.rows = RowEncoder(message, ["text"] * len(message.columns), key)
        return messages

    def change(self, statement: str, key: tuple[str, ...] = ("id",)) -> Any:
        """The encoder's result for the one row change of a statement, its JSON loaded."""
        self.read(key)
        self.connection.execute(statement)
        (result,) = [
            self.encode(message, payload)
            for message, payload in self.read(key)
            if isinstance(message, Insert | Update | Delete)
        ]
        return tuple(None if json is None else orjson.loads(json) for json in result)

    def encode(self, message: AnyMessage, payload: bytes) -> tuple[bytes | None, ...]:
        assert self.rows is not None
        if isinstance(message, Insert):
            return self.rows.insert(payload)
        if isinstance(message, Update):
            return self.rows.update(payload)
        return self.rows.delete(payload)


@pytest.fixture
def stream(database: str) -> Iterator[Stream]:
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("CREATE TABLE t (id text PRIMARY KEY, long text, v text)")
        connection.execute("ALTER TABLE t ALTER long SET STORAGE EXTERNAL")
        connection.execute(f"INSERT INTO t VALUES ('1', {LONG}, 'a')")
        connection.execute("CREATE PUBLICATION p FOR ALL TABLES")
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        yield Stream(connection)


def test_default_identity(stream: Stream) -> None:
    row = {"id": "1", "long": UNAVAILABLE, "v": "b"}
    assert stream.change("UPDATE t SET v = 'b'") == ({"id": "1"}, None, row, None, None)
    key, before, after, old_key, old_before = stream.change("UPDATE t SET id = '2'")
    assert (key, before, old_key) == ({"id": "2"}, None, {"id": "1"})
    assert after == {"id": "2", "long": UNAVAILABLE, "v": "b"}
    assert old_before == {"id": "1", "long": None, "v": None}
    assert stream.change("DELETE FROM t") == ({"id": "2"}, {"id": "2", "long": None, "v": None})


def test_full_identity_fills_what_the_update_left_out(stream: Stream) -> None:
    stream.connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    key, before, after, old_key, _ = stream.change("UPDATE t SET v = 'b'")
    assert (key, old_key) == ({"id": "1"}, None)
    assert len(before["long"]) == 2592
    assert after == before | {"v": "b"}
    key, _, after, old_key, old_before = stream.change("UPDATE t SET id = '2'")
    assert (key, old_key) == ({"id": "2"}, {"id": "1"})
    assert after == old_before | {"id": "2"}
    assert stream.change("DELETE FROM t") == ({"id": "2"}, after)


def test_h27_full_identity_without_a_key(stream: Stream) -> None:
    stream.connection.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t REPLICA IDENTITY FULL")
    key, before, after, old_key, _ = stream.change("UPDATE t SET v = 'b'", ())
    assert (key, old_key) == (None, None)
    assert (before["v"], after["v"]) == ("a", "b")
    assert stream.change("DELETE FROM t", ()) == (None, after)


def test_index_identity(stream: Stream) -> None:
    stream.connection.execute("ALTER TABLE t ALTER v SET NOT NULL; CREATE UNIQUE INDEX by_v ON t (v)")
    stream.connection.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX by_v")
    key, before, after, old_key, old_before = stream.change("UPDATE t SET v = 'b', id = '2'", ("v",))
    assert (key, before, old_key) == ({"v": "b"}, None, {"v": "a"})
    assert after == {"id": "2", "long": UNAVAILABLE, "v": "b"}
    assert old_before == {"id": None, "long": None, "v": "a"}


def test_key_stored_out_of_line_is_sent_as_an_old_key_though_it_did_not_change(stream: Stream) -> None:
    stream.connection.execute("TRUNCATE t; ALTER TABLE t ALTER id SET STORAGE EXTERNAL")
    stream.connection.execute(f"INSERT INTO t VALUES ({LONG}, NULL, 'a')")
    key, before, after, old_key, _ = stream.change("UPDATE t SET v = 'b'")
    assert len(key["id"]) == 2592
    assert (before, old_key) == (None, None)
    assert after == {"id": key["id"], "long": None, "v": "b"}


def test_every_other_message_is_read(stream: Stream) -> None:
    stream.connection.execute(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE \"größe\" (id int PRIMARY KEY, m mood)"
    )
    stream.connection.execute("SELECT pg_replication_origin_create('peer')")
    stream.connection.execute("SELECT pg_replication_origin_session_setup('peer')")
    stream.read()
    with stream.connection.transaction():
        stream.connection.execute("SELECT pg_replication_origin_xact_setup('0/77', '2020-01-01')")
        stream.connection.execute("INSERT INTO \"größe\" VALUES (1, 'sad')")
        stream.connection.execute("SELECT pg_logical_emit_message(true, 'prefix', '\\x00ff'::bytea)")
        stream.connection.execute('TRUNCATE t, "größe" RESTART IDENTITY CASCADE')
    stream.connection.execute("SELECT pg_replication_origin_session_reset()")
    stream.connection.execute("SELECT pg_logical_emit_message(false, 'p', 'outside', true)")
    messages = [message for message, _ in stream.read()]
    kinds = [type(message) for message in messages if not isinstance(message, Relation | Type)]
    assert kinds == [Begin, Origin, Insert, Message, Truncate, Commit, Message]
    found: dict[type, Any] = {type(message): message for message in reversed(messages)}
    assert found[Begin].final_lsn == found[Commit].commit_lsn < found[Commit].end_lsn
    assert found[Begin].commit_us == found[Commit].commit_us == 1577836800_000000
    assert found[Origin] == Origin(0x77, "peer")
    assert found[Type].name == "mood"
    assert "größe" in {message.name for message in messages if isinstance(message, Relation)}
    assert found[Message][:1] + found[Message][2:] == (True, "prefix", b"\x00\xff")
    assert (len(found[Truncate].relations), found[Truncate].cascade, found[Truncate].restart_identity) == (
        2,
        True,
        True,
    )
    assert isinstance(messages[-1], Message)
    assert not messages[-1].transactional
