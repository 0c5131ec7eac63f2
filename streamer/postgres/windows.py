"""Which rows of a chunk may be published: marks, snapshots, and what the stream shows between. Pure, no I/O.

A chunk is read under a snapshot S between two marks, transactional logical messages of ours. Its rows are
published where the stream shows the close mark, with that commit's LSN as their version, so they must be
the rows of that moment. The stream shows commits in the order of their records in the WAL, a snapshot sees
a transaction a little after its record is written, or, where synchronous replication waits, long after.
Hence the rules (H9, H10):

* A key changed between the marks by a transaction that S does not see is dropped: its event is newer than
  the chunk's row. A key change drops both keys. (A key's changes are seen in their order, since each waits
  for the one before to be over: if S does not see one of them, it does not see the last.)
* A transaction committed before the open mark that S does not see: its events are published already, and
  the chunk's rows are older. The chunk is void and read again.
* To know these, a committed xid is kept until a polled snapshot has seen it. The confirm to the server
  stays at the first one's commit, so that after a restart the stream shows it again.
* A truncate, another shape of the table or too many keys between the marks make the chunk void, and so
  does the stream's end: windows live as long as one session's stream.

Xids of the stream have 32 bits; a snapshot's have 64 and tell which of them is meant. Every xid is a
transaction's own, never a subtransaction's: Begin and pg_current_snapshot() agree on that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, TypeAlias

import orjson

from streamer.errors import DecodeError

MARK_PREFIX = "tailrace.chunk"
# Row changes of one table between the marks that are still open: 30 MB. A bulk update goes past it, and
# the chunks that it overtakes are read again when it has gone by.
CHANGES_LIMIT = 200_000

WHOLE, PATCH, CREATED = 0, 1, 2  # of a change: has all its values; or lacks some, as an update, as a create

_XIDS = 2**32
_HALF = 2**31


Change: TypeAlias = tuple[bytes, int, int]  # of a row between marks: key, xid, form


class Snapshot(NamedTuple):
    """What pg_current_snapshot() says: all below xmin is over, all from xmax on has not begun."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """'10:20:10,14,15'. Raises DecodeError."""
        try:
            xmin, xmax, running = text.split(":")
            return cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else _NONE)
        except ValueError:
            raise DecodeError(f"{text!r} is not a snapshot", offset=0) from None

    def sees(self, xid: int) -> bool:
        """Whether the effects of a transaction that has committed show. `xid`: 32 bits, of the stream."""
        wide = xid + self.xmax - self.xmax % _XIDS
        if wide - self.xmax > _HALF:
            wide -= _XIDS
        elif self.xmax - wide > _HALF:
            wide += _XIDS
        return wide < self.xmin or (wide < self.xmax and wide not in self.running)


_NONE: frozenset[int] = frozenset()


class Verdict(NamedTuple):
    """What is to be done with a chunk. `void`: why it is read again, else "".

    `dropped`: keys whose rows are not published. `owed`: those among them whose newer event lacks values,
    and keys that were created without all their values: to be read with the next chunk (H6, H7).
    """

    void: str
    dropped: frozenset[bytes] = frozenset()
    owed: frozenset[bytes] = frozenset()


class Commit(NamedTuple):
    """Of the close mark."""

    lsn: int
    commit_us: int


class Window:
    """One chunk between its marks. Registered before its open mark is sent.

    `shape` says which columns its rows have, `keys` which rows it has; both are set before the close mark.
    """

    __slots__ = ("chunk", "close", "early", "keys", "oid", "shape", "snapshot", "start", "void")

    def __init__(self, chunk: str, oid: int, shape: str, close: Close) -> None:
        """`close`: called where the stream shows the close mark's commit."""
        self.chunk = chunk
        self.oid = oid
        self.shape = shape
        self.close = close
        self.keys: Container[bytes] = ()
        self.snapshot: Snapshot | None = None
        self.early: list[int] = []  # xids committed before the open mark, while the snapshot is not known
        self.start = 0  # of the table's changes
        self.void = ""

    def committed(self, xid: int) -> None:
        """A transaction whose commit comes before the open mark."""
        if self.snapshot is None:
            self.early.append(xid)
        elif not self.snapshot.sees(xid):
            self.void = hidden(xid)

    def see(self, snapshot: Snapshot) -> None:
        """The snapshot under which the chunk is read."""
        self.snapshot = snapshot
        early, self.early = self.early, []
        for xid in early:
            self.committed(xid)


Close: TypeAlias = Callable[[Window, Verdict, Commit], None]


def hidden(xid: int) -> str:
    return (
        f"transaction {xid} does not show to other sessions yet: its commit waits for a standby "
        "(synchronous replication), or it has been running since the slot was made"
    )


class Windows:
    """All windows of one stream, and the commits that no polled snapshot has seen.

    `older`: xids that ran when the stream's slot was made: they may have committed before the first
    transaction that it shows, so chunks wait until they are over.
    """

    def __init__(self, older: Iterable[int] = ()) -> None:
        self._unseen: deque[tuple[int, int]] = deque()  # (xid, commit LSN) in the stream's order
        self._older = list(older)
        self._waiting: list[Window] = []  # whose open mark the stream has not shown
        self._open: dict[str, Window] = {}
        self.changes: dict[int, list[Change]] = {}  # table's oid -> row changes since its first open window
        self._mark: tuple[str, bool] | None = None  # chunk, opens: of the transaction at hand

    # ---- commits that nobody has seen yet ----------------------------------------------------

    @property
    def confirm_limit(self) -> int | None:
        """The highest LSN that may be confirmed; None: no commit is waiting to be seen."""
        return self._unseen[0][1] if self._unseen else None

    def look(self, snapshot: Snapshot) -> None:
        """A polled snapshot: what it sees, every later one sees."""
        sees = snapshot.sees
        self._unseen = deque(commit for commit in self._unseen if not sees(commit[0]))
        self._older = [xid for xid in self._older if not sees(xid)]

    # ---- a chunk's life, by the chunk ------------------------------------------------------------

    def register(self, window: Window) -> None:
        """Before its open mark is sent."""
        for xid, _ in self._unseen:
            window.committed(xid)
        for xid in self._older:
            window.committed(xid)
        self._waiting.append(window)

    def forget(self, window: Window) -> None:
        """The chunk is given up."""
        if window in self._waiting:
            self._waiting.remove(window)
        if self._open.pop(window.chunk, None) is not None:
            self._trim(window.oid)

    # ---- the stream -------------------------------------------------------------------------------

    def mark(self, content: bytes) -> None:
        """A mark's message; it takes effect with its commit. Marks of others are passed over."""
        try:
            raw = orjson.loads(content)
            self._mark = str(raw["chunk"]), raw["mark"] == "open"
        except (ValueError, KeyError, TypeError):
            self._mark = None

    def committed(self, xid: int, commit_lsn: int, commit_us: int) -> int | None:
        """A Commit, of a transaction that is published already too.

        Returns the table whose `changes` began or ended with it.
        """
        mark = self._mark
        if mark is not None:
            self._mark = None
            table = self._marked(*mark, Commit(commit_lsn, commit_us))
            if table is not None:
                return table
        self._unseen.append((xid, commit_lsn))
        for window in self._waiting:
            window.committed(xid)
        return None

    def truncated(self, oid: int) -> None:
        self._void(oid, "the table was truncated meanwhile")

    def shaped(self, oid: int, shape: str | None) -> None:
        """A Relation message; None: the table is not captured (any more)."""
        for window in self._open.values():
            if window.oid == oid and window.shape != shape:
                window.void = "the table's columns changed meanwhile"

    def check_size(self) -> None:
        """Called every few hundred messages."""
        for oid, changes in self.changes.items():
            if len(changes) > CHANGES_LIMIT:
                self._void(oid, f"more than {CHANGES_LIMIT:,} rows of the table changed meanwhile")
                changes.clear()

    def _void(self, oid: int, why: str) -> None:
        for window in self._open.values():
            if window.oid == oid:
                window.void = why

    def _marked(self, chunk: str, opens: bool, commit: Commit) -> int | None:
        if opens:
            window = next((w for w in self._waiting if w.chunk == chunk), None)
            if window is None:
                return None  # of another session, or another capture
            self._waiting.remove(window)
            self._open[chunk] = window
            window.start = len(self.changes.setdefault(window.oid, []))
            return window.oid
        window = self._open.pop(chunk, None)
        if window is None:
            return None
        verdict = self._judge(window)
        self._trim(window.oid)
        window.close(window, verdict, commit)
        return window.oid

    def _judge(self, window: Window) -> Verdict:
        snapshot = window.snapshot
        if snapshot is None or window.void:
            return Verdict(window.void or "its snapshot is not known")
        forms: dict[bytes, int] = {}  # the newest event of a key, and whether one before it was to be mended
        for key, xid, form in self.changes[window.oid][window.start :]:
            if not snapshot.sees(xid):
                forms[key] = form if form == WHOLE else max(form, forms.get(key, WHOLE))
        owed = [k for k, form in forms.items() if form == CREATED or (form == PATCH and k in window.keys)]
        return Verdict("", frozenset(forms), frozenset(owed))

    def _trim(self, oid: int) -> None:
        """Forget the changes that no open window needs; the list stays the same object."""
        starts = [window.start for window in self._open.values() if window.oid == oid]
        changes = self.changes[oid]
        if not starts:
            del self.changes[oid]
            changes.clear()
            return
        first = min(starts)
        if first:
            del changes[:first]
            for window in self._open.values():
                if window.oid == oid:
                    window.start -= first


def mark_content(run: str, chunk: str, *, opens: bool) -> str:
    return orjson.dumps({"run": run, "chunk": chunk, "mark": "open" if opens else "close"}).decode()
