"""What a member costs in the shadow's local copy: rows a second, bytes of disk, bytes of memory.

    python -m tests.bench.bench_shadow [MEMBERS]

One sorted set of so many members (1,000,000 unless given) in the order a ZSCAN gives: none. First the
copy is made from the topic's records, then every member is compared twice: all equal, and all with
another score; and once as keys with one row each. Of more than a million members 200,000 are compared,
any of them. No server. Seconds are the process's own: what else
the machine does counts little, and the file is in the system's cache.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from streamer.config.redis_entities import RedisEntity
from streamer.redis.patterns import KeyPattern
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow import Shadow
from streamer.redis.shadow_records import Place, digest_of, dump_key, dump_value
from tests.bench.figures import Figure, show

MEMBERS = 1_000_000
SAMPLE = 200_000  # compared of more than these: all of ten million would take many minutes
CHUNK = 1_000  # members of one ZSCAN step, keys of one re-read
FLUSH = 20_000  # rows of one flush
LOAD = 5_000  # records of one fetch of the topic
DIFF_FLOOR = 100_000  # rows a second, equal ones

Sample = tuple[bytes, float]


def entity(name: str, config: dict[str, object]) -> PlainEntity:
    return PlainEntity("game", name, RedisEntity.model_validate(config), several=False)


SCORES = entity("scores", {"pattern": "board:{period}", "type": "zset", "rows": {"member": "user_id"}})
KEYS = entity("keys", {"pattern": "user:{id}", "type": "string"})
BOARD = SCORES.place(0, b"board:daily", (b"daily",))


def place_of(name: str, db: int, key: bytes) -> Place | None:
    if name == "scores":
        return BOARD
    return KEYS.place(db, key, KeyPattern("user:{id}").match(key) or ())


@cache
def order_of(members: int) -> array[int]:
    """Has nothing to do with the names, and is the same each time."""
    order = array("I", range(members))
    random.Random(7).shuffle(order)
    return order


def chunks(members: int, size: int, more: float = 0.0, only: int | None = None) -> Iterator[list[Sample]]:
    """`only`: so many of them."""
    order = order_of(members)
    for start in range(0, members if only is None else only, size):
        yield [(b"player-%08d" % n, n / 8 + more) for n in order[start : start + size]]


def compared(members: int) -> int:
    return members if members <= MEMBERS else SAMPLE


def resident_bytes() -> int:
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * 4096


def records(sample: Iterable[Sample]) -> list[tuple[bytes, bytes | None]]:
    rows = SCORES.member_rows(BOARD, sample, None, [])
    return [(dump_key(BOARD, key), dump_value(1, digest_of(row))) for key, row in rows.items()]


def load(shadow: Shadow, members: int) -> float:
    spent = 0.0
    for index, sample in enumerate(chunks(members, LOAD), 1):
        made = records(sample)
        began = time.process_time()
        shadow.load(made, index * LOAD, 0)
        spent += time.process_time() - began
    began = time.process_time()
    shadow.loaded(members, 0)
    spent += time.process_time() - began
    return members / spent


def compare(shadow: Shadow, members: int, more: float) -> tuple[float, float]:
    """(rows a second in diffs, with the commits)."""
    diffs = commits = 0.0
    marks, changed, flush = shadow.begin_members(), 0, 0
    looks = compared(members)
    for sample in chunks(members, CHUNK, more, looks):
        rows = SCORES.member_rows(BOARD, sample, None, [])
        began = time.process_time()
        changed += len(shadow.diff_members(BOARD, rows, marks))
        diffs += time.process_time() - began
        if changed >= FLUSH:
            flush, changed = flush + 1, 0
            began = time.process_time()
            shadow.committed(flush, flush)
            commits += time.process_time() - began
    began = time.process_time()
    shadow.committed(flush + 1, flush + 1)
    commits += time.process_time() - began
    return looks / diffs, looks / (diffs + commits)


def compare_keys(shadow: Shadow, members: int) -> float:
    """Equal ones, after a first round that puts them there."""
    spent = 0.0
    looks = compared(members)
    for turn in range(2):
        for index, sample in enumerate(chunks(members, CHUNK, only=looks)):
            keys = [b"user:%b" % name for name, _ in sample]
            states = [(KEYS.place(0, key, (key[5:],)), b'{"id":"%b","value":"x"}' % key) for key in keys]
            began = time.process_time()
            shadow.diff_keys(states)
            if turn:
                spent += time.process_time() - began
            elif index % (FLUSH // CHUNK) == 0:
                shadow.committed(1_000_000 + index, 0)
        shadow.committed(2_000_000 + turn, 0)
    return looks / spent


def measure(members: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shadow.db"
        shadow = Shadow(path, cluster="c", fingerprint="f", place_of=place_of)
        deque(chunks(members, CHUNK), maxlen=0)  # the samples' own memory is none of the shadow's
        before = resident_bytes()
        loaded = load(shadow, members)
        equal, _ = compare(shadow, members, 0.0)
        memory = resident_bytes() - before
        _, other = compare(shadow, members, 0.5)
        marks = shadow.begin_members()
        began = time.process_time()
        walked = sum(len(keys) for keys in shadow.members_not_seen(BOARD, marks))
        walk = walked / (time.process_time() - began)
        shadow.close()  # works the log into the file
        disk = path.stat().st_size / members
        shadow = Shadow(path, cluster="c", fingerprint="f", place_of=place_of)
        singles = compare_keys(shadow, members)
        shadow.close()
    work = f"shadow of {members:,} members"
    floor = f"{DIFF_FLOOR:,} rows/s"
    return [
        Figure(f"{work}: made from the topic", f"{loaded:,.0f} rows/s"),
        Figure(f"{work}: diff, all equal", f"{equal:,.0f} rows/s", floor=floor, held=equal >= DIFF_FLOOR),
        Figure(f"{work}: diff, all other, committed", f"{other:,.0f} rows/s"),
        Figure(
            f"{work}: keys with one row, all equal",
            f"{singles:,.0f} rows/s",
            floor=floor,
            held=singles >= DIFF_FLOOR,
        ),
        Figure(f"{work}: listing what a walk has not met", f"{walk:,.0f} rows/s"),
        Figure(f"{work}: disk", f"{disk:.0f} bytes a member"),
        Figure(f"{work}: memory", f"{memory / 2**20:.0f} MiB, {memory / members:.1f} bytes a member"),
    ]


def figures() -> list[Figure]:
    """In a process of its own, whose memory is the shadow's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, MEMBERS).result()


if __name__ == "__main__":
    show(measure(int(sys.argv[1]) if len(sys.argv) > 1 else MEMBERS))
