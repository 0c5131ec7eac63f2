"""What the keys, members and scores of a Redis target's flows name, checked by the source's catalogue.

As apply checks a flow's first record, before there is one. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamer.config import Flow
from streamer.config.key_template import split_template
from streamer.doctor.check import Findings
from streamer.doctor.postgres import listed
from streamer.doctor.source import SourceFacts, taken_tables
from streamer.doctor.target import Wanted, wanted_table

_NUMBERS = ("smallint", "integer", "bigint", "real", "double precision", "numeric", "money", "oid")


def check_keys(findings: Findings, flows: list[Flow], sources: Mapping[str, SourceFacts]) -> None:
    for flow, facts, taken in taken_tables(findings, flows, sources):
        for table in taken:
            columns = facts.columns.get((table.schema, table.name), [])
            wanted = wanted_table(flow, *flow.place(table.schema, table.name), columns)
            _check_table(findings, table.qualified, wanted)


def _check_table(findings: Findings, table: str, wanted: Wanted) -> None:
    """`table`: the source's, as its people write it."""
    flow = wanted.rules
    types = {name: type_ for name, type_, in_key in wanted.columns if in_key or _is_mapped(wanted, name)}
    key = [name for name, _, in_key in wanted.columns if in_key]
    where = f"flows.{flow.name}"
    if not key and flow.write != "append":
        what = f"{table} has no key, and a row of Redis is found by its key"
        findings.fail("keys", what, f"give it a primary key, or write {where}.write: append")
        return
    if wanted.casts:
        what = f"{where}.columns casts {listed(sorted(wanted.casts))}, and Redis keeps text"
        findings.fail("keys", what, "remove `cast`: docs/targets.md has the text of each type")
    used: list[str] = []
    for word in ("key", "member"):
        names = _names(flow, word)
        used += names
        for name in dict.fromkeys(names):
            _check_name(findings, f"{where}.{word}", table, name, wanted, types, key)
    if flow.score is not None:
        _check_score(findings, f"{where}.score", table, wanted, types)
    whole = flow.key is None and flow.member is None  # then every column of the key is in it
    missing = [] if whole else [name for name in key if name not in used]
    if missing and all(name in types or name in wanted.constants for name in used):
        what = f"two rows of {table} could have one place in Redis: {listed(missing)} of its key is not in it"
        word = "key" if flow.member is None else "member"
        findings.fail("keys", what, f"add {{{missing[0]}}} to {where}.{word}")


def _is_mapped(wanted: Wanted, name: str) -> bool:
    """Whether a column travels: under `unmapped: ignore` those that `columns` names."""
    return wanted.rules.unmapped != "ignore" or not wanted.rules.columns or name in wanted.named


def _names(flow: Flow, word: str) -> list[str]:
    """The columns that a template names; a member may be written as a column by itself."""
    text = flow.key if word == "key" else flow.member
    if text is None:
        return []
    names = split_template(text)[1]
    return names or ([text] if word == "member" else [])


def _check_name(
    findings: Findings,
    where: str,
    table: str,
    name: str,
    wanted: Wanted,
    types: Mapping[str, str],
    key: list[str],
) -> None:
    if name in wanted.constants or name in key:
        return
    if name not in types:
        what = f"{where} names {name!r}, which is no column of {table} as the flow sends it"
        findings.fail("keys", what, f"it has: {', '.join(sorted({*types, *wanted.constants}))}")
    else:
        what = (
            f"{where} names {name!r}, which is not of the key of {table} ({listed(key) or 'none'}): when it"
            " changes, the row would have two keys in Redis"
        )
        findings.fail("keys", what, "name columns of the key, or constants")


def _check_score(
    findings: Findings, where: str, table: str, wanted: Wanted, types: Mapping[str, str]
) -> None:
    name = wanted.rules.score
    assert name is not None
    if name in wanted.constants:
        return
    if name not in types:
        what = f"{where} names {name!r}, which is no column of {table} as the flow sends it"
        findings.fail("keys", what, f"it has: {', '.join(sorted(types))}")
    elif types[name].partition("(")[0] not in _NUMBERS:
        findings.fail(
            "keys",
            f"{where}: {name!r} of {table} is {types[name]}, which is no number",
            "name a column of numbers",
        )
