"""SQL of the compared columns, for the sides that have SQL. Pure.

A side's own columns stand under the names that both sides have in the comparison; which of its rows count,
and what of a row changes with every write, is said here, too.
"""

from __future__ import annotations

from collections.abc import Collection

from consumers.reconcile.mapping import VERSION, Compared

NO_STAMP = "''"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def bracketed(condition: str) -> str:
    """Its last line may be a comment."""
    return f"(\n{condition}\n)"


def of_source(compared: Compared) -> dict[str, str]:
    return {pair.name: _of_source(compared, pair.name) for pair in compared.columns}


def _of_source(compared: Compared, name: str) -> str:
    """A constant is a text there."""
    constant = compared.constants.get(name)
    return quote(name) if constant is None else f"{literal(constant)}::text"


def of_target(compared: Compared) -> dict[str, str]:
    return {pair.name: quote(pair.target_name) for pair in compared.columns}


def beside_source(compared: Compared) -> dict[str, str]:
    """What a condition may name beside the compared columns."""
    return {name: _of_source(compared, name) for name in compared.beside}


def beside_target(compared: Compared) -> dict[str, str]:
    return {name: quote(target_name) for name, target_name in compared.beside.items()}


def there(compared: Compared) -> str:
    """Which of the source's rows have a place in the target."""
    return f"{quote(compared.needs)} IS NOT NULL" if compared.needs else ""


def live(compared: Compared) -> str:
    """Which of the target's rows are the flow's, and not deleted."""
    conditions = [f"{quote(name)} = {literal(text)}" for name, text in compared.own.items()]
    if compared.soft is not None:
        conditions.append(f"{quote(compared.soft)} IS NULL")
    return " AND ".join(conditions)


def stamp(names: Collection[str]) -> str:
    """Of a target's row: its version. `names`: the table's columns."""
    if not set(VERSION) <= set(names):
        return NO_STAMP
    return " || '.' || ".join(f"coalesce({quote(name)}, 0)" for name in VERSION)
