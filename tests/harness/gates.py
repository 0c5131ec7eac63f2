"""Events of one table, and rules and decisions about them."""

from __future__ import annotations

from consumers.apply.fold import Event
from consumers.apply.gates import WINDOW_S, Numbers, Part, Rule, Verdict, judge
from consumers.targets.base import Gate
from streamer.changes.envelope import Change

NOW_US = 1_700_000_000_000_000
WINDOW_US = round(WINDOW_S * 1e6)
TOPIC = "shop.public.people"
BOTH = Rule(truncates=True, share=0.1)


def event(op: str, offset: int, key: int | None = None, captured_us: int = NOW_US) -> Event:
    row = None if op == "t" else {"id": key}
    before, after = (row, None) if op == "d" else (None, row)
    change = Change(op, before, after, 1, offset, 0, "s", 0, captured_us, None)
    return Event(None if key is None else b"%d" % key, change, offset, False)


def deletes(first: int, count: int, start: int = 0) -> list[Event]:
    return [event("d", start + n, first + n) for n in range(count)]


def part(*events: Event, sweeps: dict[int, int] | None = None) -> Part:
    return Part(list(events), sweeps or {})


def decision(state: str, kind: str = "deletes", rows: int = 0, up_to_us: int = NOW_US) -> Gate:
    return Gate("mirror", TOPIC, kind, state, rows, 100, NOW_US, up_to_us, "ann@host")


def verdict_of(
    *parts: Part, rule: Rule = BOTH, gate: Gate | None = None, rows: int = 100, recent: int = 0
) -> Verdict:
    return judge(rule, gate, dict(enumerate(parts)), Numbers(rows, recent))


CONFIG = """
name: acme
sources:
  shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}
  game: {kind: redis, url: "redis://h", entities: {scores: {pattern: "s:{id}", type: string}}}
targets: {copy: {kind: memory}}
flows:
  plain: {from: "shop.public.*", to: copy.a}
  both: {from: "shop.public.*", to: copy.b, truncate: hold, hold_deletes_above: 5%}
  soft: {from: "shop.public.*", to: copy.c, delete: ignore, hold_deletes_above: 5%}
  redis: {from: game.scores, to: copy.d}
  off: {from: game.scores, to: copy.e, hold_deletes_above: ""}
  truncates: {from: "shop.public.*", to: copy.f, truncate: hold}
  unversioned: {from: "shop.public.*", to: copy.g, truncate: hold, hold_deletes_above: 5%, version: none}
"""
