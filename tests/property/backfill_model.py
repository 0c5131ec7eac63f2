"""A server, a capture and a topic, for test_backfill_windows.

The server is a model: sessions whose transactions lock rows until they show, commits whose record is in the
WAL and which do not show yet, aborted transactions and savepoints, snapshots of the running ones. The capture
is the real Transactions and Windows; chunks are read by the rules of chunks and backfill_run. At the
beginning the topic is empty and the table is not, so every row has to come by a chunk or an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from streamer.changes.envelope import SNAPSHOT_INCREMENTAL, SourceTemplate
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.position import Position, Stage
from streamer.postgres.history import Rejoin
from streamer.postgres.pgoutput import Relation
from streamer.postgres.rows import RowEncoder
from streamer.postgres.transactions import CapturedTable, Transactions
from streamer.postgres.windows import MARK_PREFIX, Commit, Snapshot, Verdict, Window, Windows, mark_content
from tests import wire

OID = 1
COLUMNS = ("id", "v", "big")
KEYS = 8
ROWS_BEFORE = 6
FIRST_LSN = 1000
FIRST_XID = 2**32 - 20  # the counter passes the end of its 32 bits on the way
EMPTY_LIMIT = 400  # steps until a backfill that nothing disturbs must be done
START = Position("shop", 0, 1, Stage.STREAMING, "7", 1, FIRST_LSN)
TEMPLATE = SourceTemplate(
    version="1", name="shop", db="d", schema="public", table="t", schema_id="s1", epoch=1
)
Row = tuple[str, str]  # v, big
Step = tuple[str, int, int]
SESSION_STEPS = ("insert", "update", "patch", "rekey", "rekey_patch", "delete", "truncate")
END_STEPS = ("commit", "hold", "abort", "savepoint", "rollback")
CAPTURE_STEPS = ("stream", "chunk", "chunk", "poll", "flush", "confirm", "kill", "show")
STEPS = (*SESSION_STEPS, *END_STEPS, *END_STEPS, *CAPTURE_STEPS, *CAPTURE_STEPS, "chunk", "stream")


def key_json(key: int) -> bytes:
    return b'{"id":"%d"}' % key


@dataclass
class Transaction:
    """`changes`: (op, key, new key or None, row or None, whether `big` is not in the WAL)."""

    xid: int
    changes: list[tuple[str, int, int | None, Row | None, bool]] = field(default_factory=list)
    savepoints: list[int] = field(default_factory=list)
    held: bool = False

    def keys(self) -> set[int]:
        return {k for _, key, new, _, _ in self.changes for k in (key, new) if k is not None}

    @property
    def truncates(self) -> bool:
        return any(change[0] == "truncate" for change in self.changes)


class Server:
    def __init__(self) -> None:
        self.rows: dict[int, Row] = {k: (f"old{k}", f"big{k}") for k in range(ROWS_BEFORE)}  # as all see them
        self.open: dict[int, Transaction] = {}
        self.held: list[Transaction] = []
        self.wal: list[tuple[int, list[bytes]]] = []
        self.lsn = FIRST_LSN
        self.next_xid = FIRST_XID
        self.value = 0

    # -- sessions

    def _mine(self, session: int) -> Transaction:
        if session not in self.open:
            self.open[session] = Transaction(self.next_xid)
            self.next_xid += 1
        return self.open[session]

    def _free(self, transaction: Transaction, *keys: int) -> bool:
        others = [t for t in (*self.open.values(), *self.held) if t is not transaction]
        return not any(t.truncates or t.keys() & set(keys) for t in others)

    def _view(self, transaction: Transaction) -> dict[int, Row]:
        return applied(dict(self.rows), transaction)

    def change(self, op: str, session: int, key: int) -> None:
        transaction = self._mine(session)
        view = self._view(transaction)
        self.value += 1
        v = f"v{self.value}"
        if op == "truncate":
            if not [t for t in (*self.open.values(), *self.held) if t is not transaction and t.changes]:
                transaction.changes.append(("truncate", -1, None, None, False))
            return
        if not self._free(transaction, key):
            return
        if op == "insert":
            if key not in view:
                transaction.changes.append(("insert", key, None, (v, f"big{v}"), False))
        elif key in view:
            big = view[key][1]
            if op == "delete":
                transaction.changes.append(("delete", key, None, None, False))
            elif op == "update":
                transaction.changes.append(("update", key, None, (v, f"big{v}"), False))
            elif op == "patch":
                transaction.changes.append(("update", key, None, (v, big), True))
            else:
                new = next((k for k in range(KEYS) if k not in view and self._free(transaction, k)), None)
                if new is not None:
                    partial = op == "rekey_patch"
                    transaction.changes.append(
                        ("rekey", key, new, (v, big if partial else f"big{v}"), partial)
                    )

    def end(self, op: str, session: int) -> None:
        transaction = self.open.get(session)
        if transaction is None:
            return
        if op == "savepoint":
            transaction.savepoints.append(len(transaction.changes))
        elif op == "rollback":
            if transaction.savepoints:
                del transaction.changes[transaction.savepoints.pop() :]
        else:
            del self.open[session]
            if op == "abort" or not transaction.changes:
                return
            self._log(transaction)
            if op == "hold":
                self.held.append(transaction)
            else:
                applied(self.rows, transaction)

    def show(self) -> None:
        """The standby has answered: what waited longest shows."""
        if self.held:
            applied(self.rows, self.held.pop(0))

    # -- WAL

    def _log(self, transaction: Transaction) -> None:
        lsn = self._next_lsn()
        commit_us = 10**15 + lsn
        body = [
            wire.begin(lsn, transaction.xid % 2**32, commit_us),
            wire.relation(OID, "t", COLUMNS, ["id"]),
        ]
        for n, (op, key, new, row, partial) in enumerate(transaction.changes):
            at = lsn - 90 + n
            values = [str(key if new is None else new), row[0], ... if partial else row[1]] if row else []
            match op:
                case "insert":
                    body.append(wire.insert(at, OID, values))
                case "update":
                    body.append(wire.update(at, OID, values))
                case "rekey":
                    body.append(wire.update(at, OID, values, old_key=[str(key), None, None]))
                case "delete":
                    body.append(wire.delete(at, OID, [str(key), None, None]))
                case "truncate":
                    body.append(wire.truncate(at, OID))
        body.append(wire.commit(lsn, lsn + 50, commit_us))
        self.wal.append((lsn, body))

    def mark(self, chunk: str, *, opens: bool) -> None:
        lsn, xid = self._next_lsn(), self.next_xid
        self.next_xid += 1
        content = mark_content("run", chunk, opens=opens).encode()
        self.wal.append(
            (
                lsn,
                [
                    wire.begin(lsn, xid % 2**32, 10**15 + lsn),
                    wire.message(lsn - 90, MARK_PREFIX, content, transactional=True),
                    wire.commit(lsn, lsn + 50, 10**15 + lsn),
                ],
            )
        )

    def _next_lsn(self) -> int:
        self.lsn += 100
        return self.lsn

    def snapshot(self) -> Snapshot:
        running = [t.xid for t in (*self.open.values(), *self.held)]
        text = f"{min(running, default=self.next_xid)}:{self.next_xid}:{','.join(map(str, sorted(running)))}"
        return Snapshot.parse(text)

    @property
    def locked(self) -> bool:
        return any(t.truncates for t in (*self.open.values(), *self.held))


def applied(rows: dict[int, Row], transaction: Transaction) -> dict[int, Row]:
    for op, key, new, row, _ in transaction.changes:
        if op == "truncate":
            rows.clear()
        else:
            rows.pop(key, None)
            if row is not None:
                rows[key if new is None else new] = row
    return rows


class Sink:
    def __init__(self) -> None:
        self.events: list[tuple[bytes | None, bytes]] = []

    def append(self, key: bytes | None, value: bytes | None) -> None:
        if value is not None:
            self.events.append((key, value))


@dataclass(frozen=True)
class Progress:
    cursor: int = -1
    owed: frozenset[int] = frozenset()
    done: bool = False


@dataclass
class Flight:
    window: Window
    keys: list[int] | None  # owed ones; None: a range
    rows: dict[int, Row] = field(default_factory=dict)
    cursor: int = -1
    last: bool = False
    read: bool = False


class Rules:
    """What the model's capture takes from the program; a mutant leaves one out."""

    windows: type[Windows] = Windows
    confirmable = staticmethod(Transactions.confirmable)


class Capture:
    """One session after the other; what is durable outlives them."""

    def __init__(self, server: Server, rules: type[Rules], size: int) -> None:
        self.server = server
        self.rules = rules
        self.size = size
        self.durable: list[tuple[bytes | None, bytes]] = []
        self.durable_progress = Progress()
        self.position = START
        self.confirmed = FIRST_LSN
        self.sessions = 0
        self.start()

    def start(self) -> None:
        self.sessions += 1
        self.sink = Sink()
        self.windows = self.rules.windows()
        rejoin = Rejoin("shop", self.position, self.confirmed)
        self.transactions = Transactions(
            self.position, rejoin, messages=TEMPLATE, now_us=lambda: 5, windows=self.windows
        )
        self.to_send = [unit for unit in self.server.wal if unit[0] >= self.confirmed]
        self.sent_to = len(self.server.wal)
        self.progress = self.durable_progress
        self.flights: list[Flight] = []
        self.number = 0
        self.rewind()

    def rewind(self) -> None:
        self.after, self.exhausted = self.progress.cursor, False

    def stream(self, units: int) -> None:
        self.to_send += self.server.wal[self.sent_to :]
        self.sent_to = len(self.server.wal)
        for _, body in self.to_send[:units]:
            for data in body:
                asked = self.transactions.feed(data)
                if isinstance(asked, Relation):
                    encoder = RowEncoder(asked, ["text"] * 3, ["id"])
                    table = CapturedTable("public.t", encoder, TEMPLATE, self.sink, "s1")
                    self.transactions.define(asked.oid, table)
        del self.to_send[:units]

    def flush(self) -> None:
        self.durable += self.sink.events
        self.sink.events.clear()
        self.position = self.transactions.position()
        self.durable_progress = self.progress

    def confirm(self) -> None:
        lsn = self.rules.confirmable(self.transactions, self.position.lsn)
        self.confirmed = max(self.confirmed, lsn)

    # -- chunks

    def chunk(self) -> None:
        """The next step of the chunk at hand: open mark, rows, close mark."""
        flight = next((f for f in self.flights if not f.read), None)
        if flight is None:
            if not self.progress.done and len(self.flights) < 3:
                self._open()
        elif flight.window.snapshot is None:
            if not self.server.locked:
                flight.window.see(self.server.snapshot())
                self._read(flight)
        else:
            flight.read = True
            self.server.mark(flight.window.chunk, opens=False)

    def _open(self) -> None:
        reading = {key for flight in self.flights for key in flight.keys or ()}
        owed = sorted(self.progress.owed - reading)[: self.size]
        if not owed and self.exhausted:
            return
        self.number += 1
        window = Window(f"{self.sessions}.{self.number}", OID, "s1", self.closed)
        self.windows.register(window)
        self.flights.append(Flight(window, owed or None))
        self.server.mark(window.chunk, opens=True)

    def _read(self, flight: Flight) -> None:
        rows = self.server.rows
        if flight.keys is not None:
            flight.rows = {key: rows[key] for key in flight.keys if key in rows}
        else:
            keys = sorted(key for key in rows if key > self.after)
            taken = keys[: self.size]
            flight.rows = {key: rows[key] for key in taken}
            self.after = flight.cursor = taken[-1] if taken else self.after
            self.exhausted = flight.last = len(keys) <= self.size
        flight.window.keys = {key_json(key) for key in flight.rows}

    def closed(self, window: Window, verdict: Verdict, commit: Commit) -> None:
        flight = next((f for f in self.flights if f.window is window), None)
        if flight is None:
            return
        self.flights.remove(flight)
        if verdict.void:
            later, self.flights = self.flights, []
            for other in later:
                self.windows.forget(other.window)
            self.rewind()
            return
        template = TEMPLATE.transaction(
            commit_us=commit.commit_us,
            xid=None,
            commit_lsn=commit.lsn,
            previous_commit_lsn=None,
            now_us=5,
            snapshot=SNAPSHOT_INCREMENTAL,
        )
        for key, (v, big) in flight.rows.items():
            if key_json(key) not in verdict.dropped:
                row = orjson.dumps({"id": str(key), "v": v, "big": big})
                self.sink.append(key_json(key), template.read(row, commit.lsn))
        owed = {int(orjson.loads(key)["id"]) for key in verdict.owed}
        left = (self.progress.owed - set(flight.keys or ())) | owed
        cursor = self.progress.cursor if flight.keys is not None else flight.cursor
        done = not left and not self.flights and self.exhausted
        self.progress = Progress(cursor, frozenset(left), done)


class Game:
    def __init__(self, rules: type[Rules], size: int) -> None:
        self.server = Server()
        self.capture = Capture(self.server, rules, size)

    def step(self, step: Step) -> None:
        name, a, b = step
        server, capture = self.server, self.capture
        if name in SESSION_STEPS:
            server.change(name, a % 3, b % KEYS)
        elif name in END_STEPS:
            server.end(name, a % 3)
        elif name == "show":
            server.show()
        elif name == "stream":
            capture.stream(1 + a)
        elif name == "poll":
            capture.windows.look(server.snapshot())
        elif name == "kill":
            capture.start()
        else:
            getattr(capture, name)()

    def finish(self) -> None:
        for session in list(self.server.open):
            self.server.end("commit", session)
        while self.server.held:
            self.server.show()
        for _ in range(EMPTY_LIMIT):
            if self.capture.progress.done:
                break
            self.capture.windows.look(self.server.snapshot())
            self.capture.chunk()
            self.capture.stream(len(self.server.wal))
        assert self.capture.progress.done
        self.capture.stream(len(self.server.wal))
        self.capture.flush()

    def differences(self) -> str:
        folded, keyless = fold(self.capture.durable)
        source = {str(k): {"id": str(k), "v": v, "big": big} for k, (v, big) in self.server.rows.items()}
        for key in keyless:  # a key change without the value: asked for by apply, as a run of its own (H6)
            if key in folded and key in source:
                folded[key] = {**folded[key], "big": source[key]["big"]}
        return "" if folded == source else f"topic {folded}\ntable {source}"


def fold(events: list[tuple[bytes | None, bytes]]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The rows that the events make, and those whose placeholders come from a key change alone."""
    rows: dict[str, dict[str, Any]] = {}
    lacking: set[str] = set()
    for key, value in events:
        event = orjson.loads(value)
        op, after = event["op"], event["after"]
        if op == "t":
            rows.clear()
            lacking.clear()
            continue
        name = str((after or event["before"])["id"])
        assert key == key_json(int(name))
        if op == "d":
            rows.pop(name, None)
            lacking.discard(name)
        elif op == "u" and after["big"] == UNAVAILABLE:
            rows[name] = {**after, "big": rows.get(name, after)["big"]}
        else:
            rows[name] = after
            lacking.discard(name)
            if after["big"] == UNAVAILABLE:
                lacking.add(name)
    return rows, lacking
