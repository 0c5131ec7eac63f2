"""Heartbeats of another config that has the same `name` on the same Kafka: they stand for none of ours. Pure.

What a process works with it tells by the words of its config (`place`) and by those of the store itself
(`store`). A server has many names: another place alone makes no stranger, unless it is of another database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.views.findings import Finding, Grade
from streamer.config.stores import database_of
from streamer.status import State, StatusRecord

REFUSED_S = 60.0  # beyond the wait in which `tailrace run` starts a part again that was refused


def parted(
    records: Iterable[StatusRecord], places: Mapping[str, str]
) -> tuple[list[StatusRecord], list[StatusRecord]]:
    """-> ours, strangers. `places`: by part, as the file names its store."""
    known = list(records)
    own: dict[str, set[str]] = {}  # by part, what the stores at our place say of themselves
    for record in known:
        if record.store and record.place and record.place == places.get(record.part):
            own.setdefault(record.part, set()).add(record.store)
    strange = [
        record
        for record in known
        if _is_strange(record, places.get(record.part, ""), own.get(record.part, set()))
    ]
    if not strange:
        return known, strange
    theirs = {(record.host, record.part, record.place) for record in strange}
    strange += [record for record in known if record.kind == "run" and _keeps(record, theirs)]
    return [record for record in known if record not in strange], strange


def _keeps(run: StatusRecord, strangers: set[tuple[str, str, str]]) -> bool:
    """Whether a `tailrace run` keeps strangers running: what it says of its parts is of them."""
    places = run.detail.get("places") or {}
    return any((run.host, part, place) in strangers for part, place in places.items())


def _is_strange(record: StatusRecord, place: str, stores: set[str]) -> bool:
    if not place or not record.place or record.place == place:
        return False
    if record.store and stores:
        return record.store not in stores
    return database_of(record.place) != database_of(place)


def stranger_findings(
    name: str, strangers: Iterable[StatusRecord], places: Mapping[str, str], at_us: int
) -> list[Finding]:
    """Of each place that strangers work with, the one heard last: while it lives, or was refused just now."""
    with_store = (record for record in strangers if record.place)
    last = {(r.part, r.place): r for r in sorted(with_store, key=lambda r: -r.age_s(at_us))}
    return [
        Finding(Grade.ERROR, record.part, _told(name, record, places[record.part]))
        for record in last.values()
        if not (record.ended or record.silent(at_us))
        or (record.ended and record.state == State.ERROR and record.age_s(at_us) < REFUSED_S)
    ]


def _told(name: str, record: StatusRecord, place: str) -> str:
    return (
        f"{record.part}: process {record.pid} on {record.host} works with {record.place}, and this file names"
        f" {place}: two configs have the name {name!r} on one Kafka, and take each other's work"
        "\n  -> give one of the two another `name`; if that process is this file's, from before `url` was"
        " changed, start it again"
    )
