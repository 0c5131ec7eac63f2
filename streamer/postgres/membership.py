"""Which of the wanted tables are published, and what is to be said or done about the others. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamer.changes.topics import data_topic
from streamer.config import PostgresSource
from streamer.postgres.catalog import Publications, Table
from streamer.resetting import key_steps, reset_steps


@dataclass(slots=True)
class Membership:
    """`addable`: tables that may be added to their publication while they are empty; `by_hand`: that only a
    person may add."""

    findings: list[str] = field(default_factory=list)
    addable: list[Table] = field(default_factory=list)
    by_hand: list[Table] = field(default_factory=list)


def judge(
    source: PostgresSource,
    publications: Publications,
    members: Mapping[str, set[str]],
    captured: Iterable[tuple[str, str]],
) -> Membership:
    """`members`: publication -> qualified names; `captured`: (schema, table) with events of this epoch."""
    found = Membership()
    published = set().union(*members.values())
    before = set(captured)
    topics: dict[str, Table] = {}
    for table in sorted(publications.tables, key=lambda table: table.qualified not in published):
        name = table.qualified
        first = topics.setdefault(data_topic(source.name, table.schema, table.name), table)
        if first is not table:
            found.findings.append(
                f"{name} is not captured: its topic would be that of {first.qualified}; "
                "rename one of them, or exclude it in `tables:`"
            )
        elif name in published:
            if not table.insert_only and name not in members.get(publications.name, ()):
                found.findings.append(
                    f"{name} has a key or a replica identity now, but only its INSERT and TRUNCATE are "
                    f"captured. To have all of it captured {key_steps(source.name)}"
                )
        elif (table.schema, table.name) in before:
            found.findings.append(
                f"{name} was captured before and is out of its publication (dropped and made again, or "
                f"taken out). To have it copied again {reset_steps(source.name)}"
            )
        elif source.publication.manage and publications.home(table) in members:
            found.addable.append(table)
        elif table.has_key:
            found.by_hand.append(table)
        else:
            found.findings.append(keyless_with_rows(source, table))
    return found


def keyless_with_rows(source: PostgresSource, table: Table) -> str:
    """A table that came later and cannot be taken in as it is."""
    return (
        f"{table.qualified} fits `tables:` but is not captured, and has rows already. To have every table "
        f"copied again, this one too, {reset_steps(source.name)}"
    )


def rows_of(source: PostgresSource, table: Table) -> str:
    """What becomes of the rows that a table has when a person publishes it."""
    if table.has_key:
        return "the rows that it has are then copied by themselves"
    return f"while it is empty; with rows, then {reset_steps(source.name)}"
