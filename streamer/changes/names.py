"""How a table is spelt where it is a key or is printed, no two alike, and which columns are ours. Pure."""

from __future__ import annotations

OWN_PREFIX = "_tailrace"  # of columns that Tailrace adds to a target's tables


def own_column(name: str) -> bool:
    """Such a column is never captured, from a source that is a target of another Tailrace."""
    return name.startswith(OWN_PREFIX)


def spelt(schema: str, table: str) -> str:
    """A part in which a dot or a quote would mislead is quoted, as SQL does it: "a.b".c is not a."b.c"."""
    return f"{_part(schema)}.{_part(table)}"


def parts(name: str) -> tuple[str, str]:
    """(schema, table) of a name that `spelt` has made."""
    if not name.startswith('"'):
        schema, _, table = name.partition(".")
        return schema, _bare(table)
    end = 1
    while (end := name.index('"', end)) + 1 < len(name) and name[end + 1] == '"':
        end += 2
    return _bare(name[: end + 1]), _bare(name[end + 2 :])


def _part(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""')) if "." in name or '"' in name else name


def _bare(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
