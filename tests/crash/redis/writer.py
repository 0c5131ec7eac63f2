"""A process that writes into one Redis as fast as it is told, with every command that leaves a mark on keys.

    python -m tests.crash.redis.writer URL SEED OPS_PER_S BIG_MEMBERS CALAMITIES

It says READY, runs until SIGTERM, waits out a server that is away, and then prints one line of JSON: what it
has done.
Commands that fail for the type of their key are part of the game. It must not know of capture.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import hiredis
import orjson

from tests.crash.redis.game import BIG, DAILY, DATABASES, FAMILIES, FIXED, NAMES, WEEKLY

Command = tuple[Any, ...]  # bytes, whole numbers and floats

KEYS_A_FAMILY = 120
MEMBERS = 25
READY = b"ready\n"  # to be stopped
TRIM_TO = 5  # entries, less than that: a stream has three or so, as its key is often deleted
USERS = 300
BATCH = 100  # commands sent at once
RETRY_S = 0.05  # between two tries to reach a server that is away
TIMEOUT_S = 5.0
MADE_GOOD_S = 1.0  # of a delay; what is more is given up
SHORT_MS = 1_500  # expiries that come to pass while the run goes on
LONG_S = 90_000  # ... and those that do not
FILL = 500  # members a command when the big sorted set is made
CALAMITY_CHANCE = 0.03  # of an operation that is drawn about once in 1,000

_SCRIPT = (
    b"redis.call('SET', KEYS[1], ARGV[1]); redis.call('DEL', KEYS[2]);"
    b"redis.pcall('ZINCRBY', KEYS[3], ARGV[2], ARGV[1]); redis.pcall('HSET', KEYS[4], 'name', ARGV[1]);"
    b"return redis.call('PEXPIRE', KEYS[1], ARGV[3])"
)
RESTORE = (
    b"local d = redis.call('DUMP', KEYS[1]); if d then"
    b" return redis.call('RESTORE', KEYS[2], ARGV[1], d, 'REPLACE') end"
)


class Mill:
    """Commands without end, all of them out of one seed."""

    def __init__(self, seed: int, *, big_members: int, calamities: bool) -> None:
        self.random = Random(seed)
        self.big_members = big_members
        self.calamities = calamities
        self.keys = {family: [family + b":" + name for name in names()] for family in FAMILIES}
        self.keys[b"bin"] += [b"bin:" + name for name in (b"a:b", b":", b"\xff:\x00:\n")]
        self.keys[b"board"] += [DAILY, WEEKLY] * 20
        self.user_keys = {family: [family + b":" + u for u in USER_IDS] for family in (b"user", b"note")}
        self.all = [key for keys in (*self.keys.values(), *self.user_keys.values()) for key in keys]
        self.loose = [key for key in self.all if key not in FIXED]  # of any type at any time
        table = self._table()
        self.operations = [operation for _, operation in table]
        self._weights = list(accumulate(weight for weight, _ in table))

    def commands(self) -> list[Command]:
        """One operation."""
        (operation,) = self.random.choices(self.operations, cum_weights=self._weights)
        return operation()

    def big(self) -> Iterator[Command]:
        """The big sorted set, made as a whole."""
        for at in range(0, self.big_members, FILL):
            yield (
                b"ZADD",
                BIG,
                *(x for n in range(at, min(at + FILL, self.big_members)) for x in (n, b"m%d" % n)),
            )

    # -- what a command is made of

    def key(self, *families: bytes) -> bytes:
        random = self.random
        return random.choice(self.keys[random.choice(families)])

    def family_pair(self) -> tuple[bytes, bytes]:
        """Two keys of one type, mostly; seldom of any two."""
        random = self.random
        if random.random() < 0.1:
            return random.choice(self.loose), random.choice(self.loose)
        keys = self.keys[random.choice(list(self.keys))]
        return random.choice(keys), random.choice(keys)

    def value(self) -> bytes:
        random = self.random
        n = random.randrange(1000)
        return random.choice(
            (b"%d" % n, b"v%d" % n, b"\xff\x00%d" % n, b'{"age": %d, "name": "n%d"}' % (n, n))
        )

    def member(self) -> bytes:
        return MEMBER_NAMES[self.random.randrange(MEMBERS)]

    def user(self) -> bytes:
        return self.random.choice(USER_IDS)

    def score(self) -> bytes | int:
        random = self.random
        return random.choice(
            (random.randrange(100), b"%.3f" % random.uniform(-9, 9), b"1e%d" % random.randrange(9))
        )

    # -- operations

    def _table(self) -> list[tuple[int, Callable[[], list[Command]]]]:
        r = self.random
        strings, hashes, zsets = (b"raw", b"bin", b"misc"), (b"card", b"field"), (b"board", b"rank")
        sets, lists = (b"tag", b"pool"), (b"queue", b"line")
        key = self.key

        def loose() -> bytes:
            return r.choice(self.loose)

        def member_of(zset: bytes) -> bytes:
            return self.user() if zset in (DAILY, WEEKLY) else self.member()

        def zadd() -> list[Command]:
            zset = key(*zsets)
            return [(b"ZADD", zset, self.score(), member_of(zset))]

        def zincr() -> list[Command]:
            zset = key(*zsets)
            return [(b"ZINCRBY", zset, r.randrange(1, 9), member_of(zset))]

        def zrem() -> list[Command]:
            zset = key(*zsets)
            return [(b"ZREM", zset, member_of(zset), member_of(zset))]

        def big() -> list[Command]:
            name = b"m%d" % r.randrange(self.big_members)
            return [
                r.choice(
                    ((b"ZADD", BIG, self.score(), name), (b"ZINCRBY", BIG, 1, name), (b"ZREM", BIG, name))
                )
            ]

        def document() -> list[Command]:
            text = b'{"age": %d, "name": "n"}' % r.randrange(99) if r.random() < 0.97 else b"{broken"
            return [(b"SET", key(b"doc", b"prof"), text)]

        def player() -> list[Command]:
            score = b"%d" % r.randrange(999) if r.random() < 0.99 else b"no number"
            return [(b"HSET", key(b"player"), b"score", score, b"name", self.value())]

        def feed() -> list[Command]:
            user = r.randrange(USERS)
            return [
                r.choice(
                    (
                        (b"HSET", self.user_keys[b"user"][user], b"name", self.value()),
                        (b"HDEL", self.user_keys[b"user"][user], b"name"),
                        (b"SET", self.user_keys[b"note"][user], self.value()),
                        (b"DEL", self.user_keys[b"note"][user]),
                        (b"HSET", NAMES, USER_IDS[user], self.value()),
                        (b"HDEL", NAMES, USER_IDS[user]),
                    )
                )
            ]

        def expire() -> list[Command]:
            short = (b"PEXPIRE", loose(), r.randrange(1, SHORT_MS))
            long = (b"EXPIRE", loose(), LONG_S + r.randrange(999))
            return [short if r.random() < 0.3 else long]

        def overwrite() -> list[Command]:
            """A key becomes one of another type."""
            victim, zset = loose(), key(b"rank")
            made: Command = r.choice(
                (
                    (b"SET", victim, self.value()),
                    (b"SUNIONSTORE", victim, key(*sets), key(*sets)),
                    (b"ZUNIONSTORE", victim, 2, zset, key(b"rank")),
                    (b"SORT", key(*lists), b"BY", b"nosort", b"STORE", victim),
                    (b"COPY", loose(), victim, b"REPLACE"),
                    (b"RENAME", loose(), victim),
                )
            )
            return [made]

        def remake() -> list[Command]:
            """A key gets its own type again."""
            victim = loose()
            kind = FAMILIES[victim.partition(b":")[0]]
            value = self.value()
            first: dict[str, Command] = {
                "string": (b"SET", victim, b'{"age": 1}'),
                "hash": (b"HSET", victim, b"name", value, b"score", b"1"),
                "zset": (b"ZADD", victim, 1, self.member()),
                "set": (b"SADD", victim, self.member()),
                "list": (b"RPUSH", victim, value),
                "stream": (b"XADD", victim, b"*", b"k", value),
            }
            return [(b"MULTI",), (b"DEL", victim), first[kind], (b"EXEC",)]

        def rename() -> list[Command]:
            one, other = self.family_pair()
            return [r.choice(((b"RENAME", one, other), (b"RENAMENX", one, other)))]

        def copy() -> list[Command]:
            one, other = self.family_pair()
            to = r.choice(DATABASES)
            return [(b"COPY", one, other, b"DB", to, b"REPLACE")]

        def restore() -> list[Command]:
            one, other = self.family_pair()
            ttl = r.choice((0, 0, r.randrange(1, SHORT_MS)))
            return [(b"EVAL", RESTORE, 2, one, other, ttl)]

        def script() -> list[Command]:
            keys = key(*strings), loose(), r.choice((DAILY, WEEKLY, key(b"rank"))), key(b"card")
            ttl = r.choice((LONG_S * 1000, r.randrange(1, SHORT_MS)))
            return [(b"EVAL", _SCRIPT, 4, *keys, self.user(), r.randrange(9), ttl)]

        def transaction() -> list[Command]:
            inner = [c for operation in (zadd, player, feed, zrem) for c in operation()]
            return [(b"MULTI",), *inner, (b"DEL", loose()), (b"EXEC",)]

        def calamity() -> list[Command]:
            if not self.calamities or r.random() > CALAMITY_CHANCE:
                return [(b"PING",)]
            what: Command = r.choice(
                ((b"FLUSHDB",), (b"SWAPDB", 0, 1), (b"FLUSHDB", b"ASYNC"), (b"FLUSHALL",))
            )
            refill = list(self.big()) if what[0] != b"SWAPDB" else []
            return [what, (b"SWAPDB", 1, 0) if r.random() < 0.1 else (b"PING",), *refill]

        return [
            (120, lambda: [(b"SET", key(*strings), self.value())]),
            (20, lambda: [(b"SET", key(*strings), self.value(), b"PX", r.randrange(1, SHORT_MS))]),
            (10, lambda: [(b"APPEND", key(*strings), b"+"), (b"GETSET", key(*strings), self.value())]),
            (30, lambda: [(b"DEL", loose()), (b"UNLINK", loose(), loose())]),
            (15, lambda: [(b"GETDEL", key(*strings, b"doc"))]),
            (60, document),
            (60, player),
            (60, lambda: [(b"HSET", key(*hashes), self.member(), self.value(), self.member(), self.value())]),
            (30, lambda: [(b"HDEL", key(*hashes, b"player"), self.member(), b"name")]),
            (20, lambda: [(b"HINCRBY", key(b"player"), b"score", 1)]),
            (5, lambda: [(b"HPEXPIRE", key(*hashes), r.randrange(1, SHORT_MS), b"FIELDS", 1, self.member())]),
            (100, zadd),
            (100, zincr),
            (40, zrem),
            (5, lambda: [(b"ZREMRANGEBYSCORE", key(b"rank"), 50, 60), (b"ZPOPMIN", key(b"rank"))]),
            (30, big),
            (60, lambda: [(b"SADD", key(*sets), self.member(), self.member())]),
            (40, lambda: [(b"SREM", key(*sets), self.member()), (b"SPOP", key(*sets))]),
            (10, lambda: [(b"SMOVE", key(*sets), key(*sets), self.member())]),
            (
                50,
                lambda: [
                    (b"LPUSH", k := key(*lists), self.value()),
                    (b"LTRIM", k, 0, r.randrange(1, MEMBERS)),
                ],
            ),
            (30, lambda: [(b"RPUSH", key(*lists), self.value()), (b"LPOP", key(*lists))]),
            (10, lambda: [(b"LMOVE", key(*lists), key(*lists), b"LEFT", b"RIGHT")]),
            (30, lambda: [(b"XADD", key(b"log"), b"*", b"k", self.value(), b"\xff", self.value())]),
            (6, lambda: [(b"XTRIM", key(b"log"), b"MAXLEN", r.randrange(1, TRIM_TO))]),
            (80, feed),
            (40, expire),
            (15, lambda: [(b"PERSIST", loose())]),
            (20, rename),
            (20, copy),
            (20, restore),
            (15, lambda: [(b"MOVE", loose(), r.choice(DATABASES))]),
            (20, script),
            (20, transaction),
            (8, overwrite),
            (30, remake),
            (1, calamity),
        ]


def names() -> list[bytes]:
    """What comes behind a family's name; `:` is not in them."""
    odd = [b"\xff\xfe", b"a b", b"\\x41", b"*", b"[z]", b"\x00", b"\r\n", "é€𝄞".encode(), b'"', b"{id}"]
    return [*odd, *(b"%d" % n for n in range(KEYS_A_FAMILY - len(odd)))]


MEMBER_NAMES = [b"\xff", b"", b"\x00z", "ü".encode(), b"\\x", *(b"m%d" % n for n in range(MEMBERS - 5))]
USER_IDS = [b"\xfe\x01", b"a:b", "ß".encode(), *(b"u%d" % n for n in range(USERS - 3))]


class Writer:
    """Sends what the mill gives, at a rate, until told to stop."""

    def __init__(self, url: str, mill: Mill, *, ops_per_s: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._password = (parts.password or "").encode()
        self._mill = mill
        self._ops_per_s = ops_per_s
        self._socket: socket.socket | None = None
        self._replies = hiredis.Reader()
        self.stopping = False
        self.ops = 0
        self.errors = 0
        self.outages = 0

    def run(self) -> None:
        due_s = time.monotonic()
        filled = -1  # in so many outages: a server may come back without its data
        while not self.stopping:
            if filled != self.outages:
                filled = self.outages
                for db in DATABASES:
                    self._send([(b"SELECT", db), *self._mill.big()])
            batch: list[Command] = [(b"SELECT", self._mill.random.choice(DATABASES))]
            while len(batch) <= BATCH:
                batch += self._mill.commands()
            self._send(batch)
            now_s = time.monotonic()
            due_s = max(due_s + len(batch) / self._ops_per_s, now_s - MADE_GOOD_S)
            if due_s > now_s:
                time.sleep(due_s - now_s)

    def _send(self, batch: list[Command]) -> None:
        """A batch that an outage has cut is not sent again: some of it may have been carried out."""
        try:
            line = self._line()
            line.sendall(b"".join(hiredis.pack_command(command) for command in batch))
            for _ in batch:
                self._count(self._reply(line))
        except OSError:
            self.outages += 1
            self._drop()
            time.sleep(RETRY_S)

    def _count(self, reply: object) -> None:
        self.ops += 1
        self.errors += isinstance(reply, hiredis.ReplyError)

    def _line(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
            self._replies = hiredis.Reader()
            login: Command = (b"AUTH", self._password)
            self._socket.sendall(hiredis.pack_command(login))
            reply = self._reply(self._socket)
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionError(str(reply))  # it is still loading its data
        return self._socket

    def _reply(self, line: socket.socket) -> object:
        while (reply := self._replies.gets()) is False:
            data = line.recv(65_536)
            if not data:
                raise ConnectionResetError
            self._replies.feed(data)
        return reply

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def main() -> int:
    url, seed, ops_per_s, big_members, calamities = sys.argv[1:]
    mill = Mill(int(seed), big_members=int(big_members), calamities=calamities == "yes")
    writer = Writer(url, mill, ops_per_s=int(ops_per_s))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        writer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    began_s = time.monotonic()
    writer.run()
    seconds = time.monotonic() - began_s
    done = {"ops": writer.ops, "errors": writer.errors, "outages": writer.outages, "seconds": seconds}
    sys.stdout.buffer.write(orjson.dumps(done) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
