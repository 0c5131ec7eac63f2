"""What a PostgreSQL connection string names.

libpq reads it. A URL that is as plain as most are is read here, with the same outcome: `tailrace status` then
need not load libpq, which takes longer than the rest of a config.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(
    r"postgres(?:ql)?://(?P<user>[\w.-]+)(?::(?P<password>[\w.!*~-]+))?"
    r"@(?P<host>[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?/(?P<dbname>[\w.-]+)",
    re.ASCII,
)


def parts_of(text: str) -> dict[str, str]:
    """By libpq's keywords (user, password, host, port, dbname ...), what is given. Raises ValueError without
    libpq's own words, which hold parts of the text, perhaps the password."""
    if (plain := _PLAIN.fullmatch(text)) is not None:
        return {name: value for name, value in plain.groupdict().items() if value is not None}
    from psycopg import ProgrammingError  # noqa: PLC0415
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        return {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except ProgrammingError:
        raise ValueError("not a connection string") from None
