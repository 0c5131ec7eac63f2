"""The shadow's local copy: what was last published of every row, in SQLite beside the process.

The home of the shadow is a compacted Kafka topic (H20); this is a cache of it, stamped with how far it
has read. Owns the diffs, and what of them is not committed yet. Does not talk to Kafka or Redis, and
keeps no row: only a row's key and 64 bits of digest, in streamer.redis.shadow_file.

    diff ...       compares rows with the shadow; differences are staged, and later diffs see them
    cut(flush)     what is staged so far goes with this flush, what comes after it does not
    committed(..)  the flush is durable in Kafka: its differences become real, with the stamp
    rollback()     a flush failed: what is not committed is forgotten, and open passes are void

A scope is where a run of rows lives: (entity, db) of entities with one row a key, where a row's name is
the Redis key; (entity, db, key) of exploded ones, where it is what comes behind the head of the row's
key (see Place). A row has a small number, so that "seen in this pass" is one bit of memory a row and
never a write.

Calls block, for a few milliseconds a chunk of 1,000 rows. One caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from streamer.errors import FatalError
from streamer.redis.shadow_file import Known, ScopeName, ShadowFile, Stamp
from streamer.redis.shadow_records import Place, digest_of, load_key, load_value

SCOPES_LIMIT = 4096  # scopes whose numbers are kept in memory; of more, the file is asked
FREE_LIMIT = 100_000  # numbers of deleted rows that are given again; past it, bits of the marks are wasted
LOADED_ROWS = 400_000  # gathered of the topic, 100 MB: each write of rows in no order touches every page
LISTED_PLACES = 500  # exploded keys named at once, as one batch of re-reads
LISTED_ROWS = 5_000  # rows read at once while what was not seen is listed: a few milliseconds

Layer = dict[int, dict[bytes, Known | None]]  # scope -> name -> what it becomes; None: gone


class _Cut(NamedTuple):
    """Differences of one flush; `freed` are the numbers of the rows that it removes."""

    flush: int
    staged: Layer
    freed: list[int]


class Changed(NamedTuple):
    """One difference. `row` None: gone (op d). `was_there`: op u, else c."""

    place: Place
    row_key: bytes
    row: bytes | None
    digest: int
    was_there: bool


class Marks:
    """Which numbers were seen: a bit each. Of no use after a rollback: `run` is the shadow's then."""

    __slots__ = ("_bits", "run")

    def __init__(self, run: int) -> None:
        self._bits = bytearray()
        self.run = run

    def add(self, number: int) -> None:
        at = number >> 3
        bits = self._bits
        if at >= len(bits):
            bits.extend(bytes(at + 1 - len(bits) + len(bits) // 2))
        bits[at] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] >> (number & 7) & 1)


class Pass(NamedTuple):
    """A walk over all keys: while it is open, every diff marks what it was given."""

    rows: Marks  # of scopes with one row a key
    scopes: Marks  # of exploded keys


class Shadow:
    """`place_of(entity, db, key)` is Entities.place: which form a row of the topic has in this config."""

    def __init__(
        self,
        path: Path,
        *,
        cluster: str,
        fingerprint: str,
        place_of: Callable[[str, int, bytes], Place | None],
    ) -> None:
        """Opens or makes the file; one of another cluster, config or format is made anew.

        Raises FatalError: another program has it open, or it cannot be written.
        """
        self._file = ShadowFile(path, cluster=cluster, fingerprint=fingerprint)
        self._place_of = place_of
        self._next_number = self._file.next_number
        self._free: list[int] = []
        self._next_scope = self._file.last_scope() + 1
        self._scopes: dict[ScopeName, int] = {}
        self._new_scopes: dict[ScopeName, int] = {}  # not in the file yet
        # Not committed: the flushes that were cut, oldest first, and what comes after the last cut.
        self._cuts: list[_Cut] = []
        self._staged: Layer = {}
        self._freed: list[int] = []
        self._loading: Layer = {}
        self._loading_rows = 0
        self._passes: list[Pass] = []
        self._run = 0  # counts rollbacks
        self._forced = False
        self.forced_rows = 0  # given though they may not differ

    @property
    def stamp(self) -> Stamp | None:
        """How far the copy goes; None: it is empty, read the topic from its start."""
        return self._file.stamp

    def close(self) -> None:
        """What is not committed is forgotten."""
        self._file.close()

    # Diffs

    @contextmanager
    def forcing(self, force: bool = True) -> Iterator[None]:
        """Inside, diffs give every row that is there, whether it differs or not."""
        self._forced = force
        try:
            yield
        finally:
            self._forced = False

    def has(self, place: Place, row_key: bytes) -> bool:
        """Whether the row was there when its key was compared last."""
        return bool(self._known(self._scope(place), [_name(place, row_key)]))

    def places_of(self, entity: str) -> Iterator[list[Place]]:
        """Of all rows of an entity with one row a key, in chunks. Other diffs may go on between two."""
        for number, name in self._all_scopes():
            for chunk in self._walk(number) if name.single and name.entity == entity else ():
                yield [self._stored(name, key) for key, _ in chunk]

    def diff(self, place: Place, rows: Mapping[bytes, bytes], keep: Collection[bytes] = ()) -> list[Changed]:
        """All rows of one key against the shadow: what is new, other, and no more there.

        `keep`: keys of rows that are there and cannot be used (BadValue.row_key): they stay as they are.
        """
        if place.single:
            if keep:
                self.seen(place)
                return []
            return self.diff_keys([(place, rows.get(place.head))])
        scope = self._scope(place)
        known = self._all_known(scope)
        self._mark_scope(scope)
        changes = self._compare(place, scope, rows, known, None)
        gone = known.keys() - {_name(place, key) for key in (*rows, *keep)}
        return changes + self._remove(place, scope, sorted(gone), known)

    def seen(self, place: Place) -> None:
        """The key is there, whatever it holds: a pass does not name it. Its rows stay as they are."""
        scope = self._scope(place)
        if not place.single:
            self._mark_scope(scope)
            return
        for number, _ in self._known(scope, [place.key]).values():
            for walk in self._passes:
                walk.rows.add(number)

    def count(self) -> int:
        """Rows that are committed; walks the whole file."""
        return self._file.count()

    def count_of(self, place: Place) -> int:
        """Rows of this key."""
        return 1 if place.single else sum(len(chunk) for chunk in self._walk(self._scope(place)))

    def diff_keys(self, batch: Sequence[tuple[Place, bytes | None]]) -> list[Changed]:
        """The same for many keys with one row each (Place.single); row None: the key is gone."""
        groups: dict[tuple[str, int], list[tuple[Place, bytes | None]]] = {}
        for item in batch:
            groups.setdefault((item[0].entity, item[0].db), []).append(item)
        return [change for items in groups.values() for change in self._diff_group(items)]

    def diff_members(self, place: Place, rows: Mapping[bytes, bytes], marks: Marks) -> list[Changed]:
        """Some rows of an exploded key: what is new or other. Marks them as seen."""
        self._check(marks)
        scope = self._scope(place)
        head = len(place.head)
        known = self._known(scope, [key[head:] for key in rows])
        self._mark_scope(scope)
        return self._compare(place, scope, rows, known, marks)

    def begin_members(self) -> Marks:
        """Of one walk over one exploded key's members, chunk by chunk."""
        return Marks(self._run)

    def members_not_seen(self, place: Place, marks: Marks) -> Iterator[list[bytes]]:
        """Keys of the rows that the walk has not met, in chunks: candidates. What Redis confirms to be
        gone is for `gone`."""
        scope = self._scope(place)
        for chunk in self._walk(scope):
            self._check(marks)
            missing = [_row_key(place, name) for name, known in chunk if known[0] not in marks]
            if missing:
                yield missing

    def gone(self, place: Place, row_keys: Iterable[bytes]) -> list[Changed]:
        """These rows are no more there. Those that the shadow does not have are passed over."""
        if place.single:
            return self.diff_keys([(place, None)])
        scope = self._scope(place)
        names = list(dict.fromkeys(_name(place, key) for key in row_keys))
        known = self._known(scope, names)
        return self._remove(place, scope, [name for name in names if name in known], known)

    def others(self, place: Place, rows: Mapping[bytes, bytes | None]) -> list[bytes]:
        """Keys of those rows of an exploded key that are not as they were compared last (None: gone).
        Nothing is staged or marked."""
        head = len(place.head)
        known = self._known(self._scope(place), [key[head:] for key in rows])
        return [
            key
            for key, row in rows.items()
            if (None if row is None else digest_of(row))
            != (known[key[head:]][1] if key[head:] in known else None)
        ]

    def begin_pass(self) -> Pass:
        """Of one full scan; end it with end_pass."""
        self._passes.append(Pass(Marks(self._run), Marks(self._run)))
        return self._passes[-1]

    def end_pass(self, walk: Pass) -> None:
        self._passes = [other for other in self._passes if other is not walk]

    def keys_not_seen(self, walk: Pass) -> Iterator[list[Place]]:
        """Places with rows that no diff has met since begin_pass, in chunks: candidates, each to be read
        again. Other diffs may go on between two chunks."""
        exploded: list[Place] = []
        for number, name in self._all_scopes():
            self._check(walk.scopes)
            if name.single:
                for chunk in self._walk(number):
                    self._check(walk.rows)
                    places = [self._stored(name, key) for key, known in chunk if known[0] not in walk.rows]
                    if places:
                        yield places
            elif number not in walk.scopes:
                if self._has_rows(number):
                    exploded.append(self._stored(name, name.key))
                else:
                    self._forget_scope(number, name)
                if len(exploded) == LISTED_PLACES:
                    yield exploded
                    exploded = []
        if exploded:
            yield exploded

    # Commits

    def cut(self, flush: int) -> None:
        self._cuts.append(_Cut(flush, self._staged, self._freed))
        self._staged, self._freed = {}, []

    def committed(self, flush: int, next_offset: int) -> None:
        """`next_offset`: of the shadow topic, behind the flush's records. Without a cut for this flush,
        all that is staged is its."""
        if all(cut.flush != flush for cut in self._cuts):
            self.cut(flush)
        count = next(i for i, cut in enumerate(self._cuts, 1) if cut.flush == flush)
        cuts, self._cuts = self._cuts[:count], self._cuts[count:]
        staged = cuts[0].staged
        for cut in cuts[1:]:
            for scope, names in cut.staged.items():
                staged.setdefault(scope, {}).update(names)
        self._write(staged, Stamp(next_offset, flush))
        for cut in cuts:
            self._free += cut.freed[: FREE_LIMIT - len(self._free)]

    def rollback(self) -> None:
        self._cuts.clear()
        self._staged, self._freed = {}, []
        self._next_number = self._file.next_number
        self._new_scopes.clear()
        self._next_scope = self._file.last_scope() + 1
        self._passes.clear()
        self._run += 1

    def load(self, records: Iterable[tuple[bytes, bytes | None]], next_offset: int, flush: int) -> None:
        """Records of the topic in their order, None a tombstone. They are gathered, and become real many
        at a time, with the stamp; `loaded` ends it. Only while nothing is staged. Raises DecodeError.
        """
        for raw_key, value in records:
            entity, db, key, row_key = load_key(raw_key)
            place = self._place_of(entity, db, key)
            if place is None or (place.single and place.head != row_key):
                place = Place(entity, db, key, b"", False)  # of another config: kept as it is
            known = None if value is None else (0, load_value(value)[1])
            self._loading.setdefault(self._scope(place), {})[_name(place, row_key)] = known
            self._loading_rows += 1
        if self._loading_rows >= LOADED_ROWS:
            self.loaded(next_offset, flush)

    def loaded(self, next_offset: int, flush: int) -> None:
        """What `load` has gathered becomes real: the copy goes as far as `next_offset`."""
        rows, self._loading, self._loading_rows = self._loading, {}, 0
        for scope, names in rows.items():
            there = self._known(scope, sorted(names))
            for name, known in names.items():
                if known is not None:
                    number = there[name][0] if name in there else self._take_number()
                    names[name] = (number, known[1])
        self._write(rows, Stamp(next_offset, flush))

    def _write(self, staged: Layer, stamp: Stamp) -> None:
        self._file.write(staged, self._new_scopes, stamp, self._next_number)
        self._new_scopes.clear()

    # Scopes and numbers

    def _scope(self, place: Place) -> int:
        name = ScopeName(place.entity, place.db, place.single, b"" if place.single else place.key)
        number = self._scopes.get(name) or self._new_scopes.get(name) or self._file.scope(name)
        if number is None:
            number = self._new_scopes[name] = self._next_scope
            self._next_scope += 1
        elif name not in self._new_scopes:
            if len(self._scopes) >= SCOPES_LIMIT:
                self._scopes.clear()
            self._scopes[name] = number
        return number

    def _all_scopes(self) -> Iterator[tuple[int, ScopeName]]:
        """Those in the file: what is only staged has just been seen."""
        last = 0
        while chunk := self._file.scopes_after(last, LISTED_ROWS):
            yield from chunk
            last = chunk[-1][0]

    def _forget_scope(self, number: int, name: ScopeName) -> None:
        if not any(layer.get(number) for layer in self._layers()):
            self._file.forget_scope(number)
            self._scopes.pop(name, None)

    def _has_rows(self, scope: int) -> bool:
        if any(layer.get(scope) for layer in self._layers()):
            return next(self._walk(scope), None) is not None
        return bool(self._file.after(scope, None, 1))

    def _stored(self, name: ScopeName, key: bytes) -> Place:
        place = self._place_of(name.entity, name.db, key)
        if place is not None and place.single == name.single:
            return place
        return Place(name.entity, name.db, key, b"", False)

    def _take_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._next_number += 1
        return self._next_number - 1

    # Rows

    def _layers(self) -> list[Layer]:
        return [*(cut.staged for cut in self._cuts), self._staged]

    def _known(self, scope: int, names: list[bytes]) -> dict[bytes, Known]:
        known = self._file.known(scope, names)
        for layer in self._layers():
            staged = layer.get(scope)
            if staged:
                _lay(known, {name: staged[name] for name in names if name in staged})
        return known

    def _all_known(self, scope: int) -> dict[bytes, Known]:
        known = self._file.all(scope)
        for layer in self._layers():
            _lay(known, layer.get(scope, {}))
        return known

    def _walk(self, scope: int) -> Iterator[list[tuple[bytes, Known]]]:
        """All rows of a scope, in chunks, none of them empty. A row that comes while it goes on may be
        left out."""
        last = None
        while chunk := self._file.after(scope, last, LISTED_ROWS):
            last = chunk[-1][0]
            known = dict(chunk)
            names = frozenset(known)
            for layer in self._layers():
                staged = layer.get(scope)
                if staged:
                    _lay(known, {name: staged[name] for name in names & staged.keys()})
            if known:
                yield list(known.items())
        added = {name for layer in self._layers() for name in layer.get(scope, {})}
        if added:
            known = self._known(scope, list(added))
            for name in self._file.known(scope, list(added)):
                known.pop(name, None)
            if known:
                yield sorted(known.items())

    def _diff_group(self, items: list[tuple[Place, bytes | None]]) -> list[Changed]:
        """Of one entity and database."""
        scope = self._scope(items[0][0])
        known = self._known(scope, [place.key for place, _ in items])
        staged = self._staged.setdefault(scope, {})
        marks = [walk.rows for walk in self._passes]
        changes = []
        for place, row in items:
            was = known.get(place.key)
            if row is None:
                if was is not None:
                    staged[place.key] = None
                    self._freed.append(known.pop(place.key)[0])
                    changes.append(Changed(place, place.head, None, 0, True))
                continue
            digest = digest_of(row)
            self.forced_rows += self._forced
            if was is None or was[1] != digest or self._forced:
                number = self._take_number() if was is None else was[0]
                staged[place.key] = known[place.key] = (number, digest)
                changes.append(Changed(place, place.head, row, digest, was is not None))
            else:
                number = was[0]
            for seen in marks:
                seen.add(number)
        return changes

    def _compare(
        self,
        place: Place,
        scope: int,
        rows: Mapping[bytes, bytes],
        known: Mapping[bytes, Known],
        marks: Marks | None,
    ) -> list[Changed]:
        staged = self._staged.setdefault(scope, {})
        head = len(place.head)
        changes = []
        for key, row in rows.items():
            name = key[head:]
            digest = digest_of(row)
            was = known.get(name)
            self.forced_rows += self._forced
            if was is None or was[1] != digest or self._forced:
                number = self._take_number() if was is None else was[0]
                staged[name] = (number, digest)
                changes.append(Changed(place, key, row, digest, was is not None))
            else:
                number = was[0]
            if marks is not None:
                marks.add(number)
        return changes

    def _remove(
        self, place: Place, scope: int, names: Iterable[bytes], known: Mapping[bytes, Known]
    ) -> list[Changed]:
        staged = self._staged.setdefault(scope, {})
        changes = []
        for name in names:
            staged[name] = None
            self._freed.append(known[name][0])
            changes.append(Changed(place, _row_key(place, name), None, 0, True))
        return changes

    def _check(self, marks: Marks) -> None:
        if marks.run != self._run:
            raise FatalError("a walk over the shadow went on after a rollback", fix="report this as a bug")

    def _mark_scope(self, scope: int) -> None:
        for walk in self._passes:
            walk.scopes.add(scope)


def _lay(known: dict[bytes, Known], staged: Mapping[bytes, Known | None]) -> None:
    for name, becomes in staged.items():
        if becomes is None:
            known.pop(name, None)
        else:
            known[name] = becomes


def _name(place: Place, row_key: bytes) -> bytes:
    """Of a row in its scope. What is behind a head is a JSON value, which is no object."""
    if place.single:
        return place.key
    return row_key[len(place.head) :] if row_key.startswith(place.head) else row_key


def _row_key(place: Place, name: bytes) -> bytes:
    return name if name[:1] == b"{" else place.head + name
