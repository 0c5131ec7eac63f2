"""Snapshots with 64-bit xids against the stream's 32 bits, and what makes a chunk void."""

from __future__ import annotations

import pytest

from streamer.errors import DecodeError
from streamer.postgres import windows as module
from streamer.postgres.windows import WHOLE, Commit, Snapshot, Verdict, Window, Windows, mark_content
from tests.property.backfill_model import START, Capture, Rules, Server

EVERYTHING = Snapshot.parse("900:900:")


@pytest.mark.parametrize(
    ("text", "xid", "seen"),
    [
        ("10:20:10,14", 9, True),
        ("10:20:10,14", 10, False),
        ("10:20:10,14", 11, True),
        ("10:20:10,14", 14, False),
        ("10:20:10,14", 20, False),
        (f"{2**32 + 5}:{2**32 + 5}:", 2**32 - 1, True),  # before the counter passed its end
        (f"{2**32 - 3}:{2**32 - 3}:", 4, False),  # and after it
        (f"{2**33 + 5}:{2**33 + 8}:{2**33 + 5}", 5, False),
        (f"{2**33 + 5}:{2**33 + 8}:{2**33 + 5}", 6, True),
    ],
)
def test_what_a_snapshot_sees(text: str, xid: int, seen: bool) -> None:
    assert Snapshot.parse(text).sees(xid) is seen


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "1:2:3,x", "1:2:3:4"])
def test_what_is_no_snapshot_is_said(text: str) -> None:
    with pytest.raises(DecodeError, match="is not a snapshot"):
        Snapshot.parse(text)


class Chunk:
    """A chunk of table 1 whose open mark the stream has shown."""

    def __init__(self, windows: Windows) -> None:
        self.verdict: Verdict | None = None
        self.windows = windows
        self.window = Window("c", 1, "shape", self.closed)
        windows.register(self.window)
        self.window.see(EVERYTHING)
        windows.mark(mark_content("run", "c", opens=True).encode())
        assert windows.committed(800, 1000, 5) == 1

    def closed(self, window: Window, verdict: Verdict, commit: Commit) -> None:
        assert (window, commit) == (self.window, Commit(1100, 6))
        self.verdict = verdict

    def close(self) -> Verdict:
        self.windows.mark(mark_content("run", "c", opens=False).encode())
        self.windows.committed(899, 1100, 6)
        assert self.verdict is not None
        assert self.windows.changes == {}
        return self.verdict


def test_h10_another_shape_or_too_many_changes_void_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows()
    chunk = Chunk(windows)
    windows.shaped(1, "shape")
    windows.shaped(2, "other")
    windows.truncated(2)
    assert chunk.close() == Verdict("")
    chunk = Chunk(windows)
    windows.shaped(1, "other")
    assert "columns changed" in chunk.close().void
    chunk = Chunk(windows)
    windows.truncated(1)
    assert "truncated" in chunk.close().void
    monkeypatch.setattr(module, "CHANGES_LIMIT", 10)
    chunk = Chunk(windows)
    windows.changes[1] += [(b"k", 1, WHOLE)] * 11
    windows.check_size()
    assert windows.changes == {1: []}
    assert "more than 10 rows" in chunk.close().void


def test_marks_of_others_and_nonsense_are_passed_over() -> None:
    windows = Windows()
    for content in (b"", b"[]", b"{}", b'{"chunk":"x","mark":"open"}', b'{"chunk":"x","mark":"close"}'):
        windows.mark(content)
        assert windows.committed(5, 100, 1) is None
    assert windows.confirm_limit == 100
    windows.look(EVERYTHING)
    assert windows.confirm_limit is None


def test_a_transaction_older_than_the_slot_holds_chunks_up_and_not_the_confirm() -> None:
    windows = Windows(older=[850])
    assert windows.confirm_limit is None
    window = Window("c", 1, "shape", lambda *_: None)
    windows.register(window)
    window.see(Snapshot.parse("850:900:850"))
    assert "transaction 850 does not show" in window.void
    windows.look(EVERYTHING)
    window = Window("d", 1, "shape", lambda *_: None)
    windows.register(window)
    window.see(EVERYTHING)
    assert window.void == ""


def test_h09_nothing_is_confirmed_before_a_restarted_stream_has_shown_it() -> None:
    """What is published already may not show yet: only the stream can tell which transactions those are."""
    server = Server()
    server.change("update", 0, 1)
    server.end("hold", 0)
    capture = Capture(server, Rules, size=1)
    capture.stream(1)
    capture.flush()
    assert capture.position.lsn > START.lsn
    capture.start()
    assert capture.transactions.confirmable(capture.position.lsn) == 0
    capture.stream(1)
    [(commit_lsn, _)] = server.wal
    assert capture.transactions.confirmable(capture.position.lsn) == commit_lsn
    server.show()
    capture.windows.look(server.snapshot())
    assert capture.transactions.confirmable(capture.position.lsn) == capture.position.lsn
