"""Whatever is cut where: after restarts the log holds each event once, in order, and no other."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.changes.envelope import SourceTemplate
from streamer.changes.position import Position, Stage
from streamer.errors import DecodeError, PositionError
from streamer.postgres.history import Rejoin
from streamer.postgres.pgoutput import Relation
from streamer.postgres.replication_messages import Keepalive, parse
from streamer.postgres.rows import RowEncoder
from streamer.postgres.transactions import CapturedTable, Transactions
from tests import wire

COLUMNS = ("id", "v")
TABLES = {1: "orders", 2: "ignored"}
FIRST_LSN = 1000
START = Position("shop", 0, 1, Stage.STREAMING, "7", 1, FIRST_LSN)

Event = tuple[str, int, int]  # op, commit LSN, ordinal


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, key: bytes | None, value: bytes | None) -> None:
        if value is not None:
            raw = orjson.loads(value)
            self.events.append((raw["op"], raw["source"]["commit_lsn"], raw["source"]["ordinal"]))


def template(schema_id: str = "0") -> SourceTemplate:
    return SourceTemplate(
        version="1", name="shop", db="d", schema="public", table="orders", schema_id=schema_id, epoch=1
    )


@dataclass
class Server:
    """What a slot sends: transactions in commit order, and keepalives between them."""

    units: list[tuple[int, list[bytes]]] = field(default_factory=list)  # (commit LSN, messages)

    def send(self, confirmed: int) -> list[bytes]:
        relations = [wire.relation(oid, name, COLUMNS, ["id"]) for oid, name in TABLES.items()]
        sent: list[bytes] = []
        for lsn, messages in self.units:
            if lsn >= confirmed:
                if messages[0][25:26] == b"B":
                    sent += [messages[0], *relations, *messages[1:]]
                else:
                    sent += messages
        return sent


operations = st.lists(
    st.sampled_from(["insert", "update", "rekey", "delete", "truncate", "message", "other"]),
    min_size=1,
    max_size=8,
)
units = st.lists(st.one_of(operations, st.just("idle"), st.just("note")), min_size=1, max_size=8)


def build(plan: list[list[str] | str], xid: int = 700) -> Server:
    server = Server()
    lsn = FIRST_LSN
    for unit in plan:
        lsn += 100
        xid += 1
        if unit == "idle":
            server.units.append((lsn, [wire.keepalive(lsn)]))
        elif unit == "note":
            server.units.append((lsn, [wire.message(lsn, "user", b"x", transactional=False)]))
        else:
            commit_us = 10**15 + lsn
            body = [wire.begin(lsn, xid, commit_us)]
            body += [change(kind, lsn - 90 + n) for n, kind in enumerate(unit)]
            body.append(wire.commit(lsn, lsn + 50, commit_us))
            server.units.append((lsn, body))
    return server


def change(kind: str, lsn: int) -> bytes:
    match kind:
        case "insert":
            return wire.insert(lsn, 1, ["1", "a"])
        case "update":
            return wire.update(lsn, 1, ["1", "b"])
        case "rekey":
            return wire.update(lsn, 1, ["2", "b"], old_key=["1", None])
        case "delete":
            return wire.delete(lsn, 1, ["1", None])
        case "truncate":
            return wire.truncate(lsn, 1, 2)
        case "message":
            return wire.message(lsn, "user", b"x", transactional=True)
    return wire.insert(lsn, 2, ["9", "z"])


def session(position: Position, confirmed: int, sink: Sink) -> Transactions:
    rejoin = Rejoin("shop", position, confirmed)
    transactions = Transactions(position, rejoin, messages=template(), now_us=lambda: 5)
    transactions.message_sink = sink
    return transactions


def feed(transactions: Transactions, data: bytes, sink: Sink) -> None:
    if data[:1] == b"k":
        message = parse(data)
        assert isinstance(message, Keepalive)
        transactions.keepalive(message.wal_end)
        return
    asked = transactions.feed(data)
    if isinstance(asked, Relation):
        encoder = RowEncoder(asked, ["text", "text"], ["id"])
        wanted = asked.name == "orders"
        table = CapturedTable(f"public.{asked.name}", encoder, template(), sink) if wanted else None
        transactions.define(asked.oid, table)


def whole(server: Server) -> list[Event]:
    sink = Sink()
    transactions = session(START, 0, sink)
    for data in server.send(0):
        feed(transactions, data, sink)
    return sink.events


@settings(max_examples=300, deadline=None)
@given(plan=units, data=st.data())
def test_h04_h29_cut_anywhere_the_log_is_the_same(plan: list[list[str] | str], data: st.DataObject) -> None:
    server = build(plan)
    expected = whole(server)
    durable: list[Event] = []
    position, confirmed = START, FIRST_LSN
    for _ in range(data.draw(st.integers(1, 4), label="sessions")):
        sink = Sink()
        transactions = session(position, confirmed, sink)
        messages = server.send(confirmed)
        stop_at = data.draw(st.integers(0, len(messages)), label="killed after")
        for message in messages[:stop_at]:
            feed(transactions, message, sink)
            if data.draw(st.booleans(), label="flush"):
                durable += sink.events
                sink.events.clear()
                position = transactions.position()
                if data.draw(st.booleans(), label="confirm"):
                    confirmed = position.lsn
    sink = Sink()
    transactions = session(position, confirmed, sink)
    for message in server.send(confirmed):
        feed(transactions, message, sink)
    assert durable + sink.events == expected


@settings(max_examples=200, deadline=None)
@given(plan=units, cut=st.integers(0, 60), confirm=st.booleans())
def test_h04_a_restored_copy_is_found_out(plan: list[list[str] | str], cut: int, confirm: bool) -> None:
    """The same LSNs, other transactions: skipped ones are never taken for ours."""
    server = build(plan)
    sink = Sink()
    transactions = session(START, 0, sink)
    for data in server.send(0)[:cut]:
        feed(transactions, data, sink)
    position = transactions.position()
    other = build(plan, xid=5000)
    confirmed = position.lsn if confirm else FIRST_LSN
    again = session(position, confirmed, Sink())
    last = position.last_commit
    shows_last = last is not None and last.commit_lsn >= confirmed
    if not shows_last and position.partial is None:
        return  # nothing that was published comes by again

    def go_on() -> None:
        for data in other.send(confirmed):
            feed(again, data, Sink())
        again.keepalive(10**9)

    with pytest.raises(PositionError, match="restored from a copy"):
        go_on()


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_give_a_result_or_a_decode_error(noise: bytes) -> None:
    sink = Sink()
    transactions = session(START, 0, sink)
    for data in build([["insert"]]).send(0)[:3]:
        feed(transactions, data, sink)
    with suppress(DecodeError):
        transactions.feed(b"w" + noise)


def test_h29_ordinals_count_every_row_change_before_any_filter() -> None:
    """A key change counts two, a truncate one a relation, and what is filtered counts too."""
    plan = ["insert", "rekey", "other", "truncate", "message", "delete"]
    lsn = FIRST_LSN + 100
    ops = [("c", 0), ("d", 1), ("c", 2), ("t", 4), ("m", 6), ("d", 7)]
    assert whole(build([plan])) == [(op, lsn, ordinal) for op, ordinal in ops]


def feed_all(transactions: Transactions, server: Server) -> None:
    for data in server.send(FIRST_LSN):
        feed(transactions, data, Sink())


def cut(server: Server, messages: int) -> Position:
    transactions = session(START, FIRST_LSN, Sink())
    for data in server.send(FIRST_LSN)[:messages]:
        feed(transactions, data, Sink())
    return transactions.position()


@pytest.mark.parametrize("kind", ["insert", "other"])
def test_h29_a_cut_transaction_whose_changes_moved_is_found_out(kind: str) -> None:
    """The same LSN of the commit, xid and time; but the last published change is at another place."""
    server = build([["insert", kind, "insert"]])
    position = cut(server, 5)  # Begin, two relations, two row changes
    assert position.partial is not None
    assert position.partial.published == 2
    [(lsn, body)] = server.units
    body[2] = change(kind, lsn - 50)
    again = session(position, FIRST_LSN, Sink())
    with pytest.raises(PositionError, match="row change 1 of transaction 701"):
        feed_all(again, server)


def test_h29_a_cut_transaction_that_became_shorter_is_found_out() -> None:
    server = build([["insert", "insert", "insert"]])
    position = cut(server, 5)
    [(_, body)] = server.units
    del body[2:4]
    again = session(position, FIRST_LSN, Sink())
    with pytest.raises(PositionError, match="has only 1 row changes"):
        feed_all(again, server)


def test_h04_a_keepalive_inside_a_transaction_moves_nothing() -> None:
    """The server sends them there too: what is confirmed then would skip the rest of the transaction."""
    server = build([["insert", "insert"]])
    transactions = session(START, FIRST_LSN, Sink())
    *most, commit = server.send(FIRST_LSN)
    for data in most:
        feed(transactions, data, Sink())
        transactions.keepalive(10**6)
        assert transactions.lsn == FIRST_LSN
    feed(transactions, commit, Sink())
    transactions.keepalive(10**6)
    assert transactions.lsn == 10**6


def test_h04_a_restored_copy_that_shows_other_transactions_before_the_position() -> None:
    server = build([["insert"], "idle", "idle"])
    transactions = session(START, FIRST_LSN, Sink())
    for data in server.send(FIRST_LSN):
        feed(transactions, data, Sink())
    position = transactions.position()
    other = Server([server.units[0], build(["idle", ["insert"]], xid=5000).units[1]])
    again = session(position, FIRST_LSN, Sink())
    with pytest.raises(PositionError, match="was not there when everything before"):
        feed_all(again, other)
