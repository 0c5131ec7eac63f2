"""The URL of a `kind: sql` target: which databases there are for it, and which not yet.

SQLAlchemy's form of a URL. A relative path is relative to the config file, as every path in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr, ValidationInfo

from streamer.config.base import fail, nearest

SQLITE = "sqlite"
COMING = ("mysql", "mariadb")  # known, and refused by name where the target is used
_USE_POSTGRES = "write `kind: postgres` and the same server as postgresql://user:password@host:5432/database"
_INSTEAD = {
    "postgresql": _USE_POSTGRES,
    "postgres": _USE_POSTGRES,
    "cockroachdb": _USE_POSTGRES,
    "redis": "write `kind: redis`",
}
_SQLITE_FORM = "write sqlite:///copy.db (beside the config file) or sqlite:////var/lib/copy.db"


def sql_backend(url: SecretStr) -> str:
    """sqlite, mysql or mariadb."""
    return url.get_secret_value().split(":", 1)[0].split("+", 1)[0].lower()


def sqlite_path(url: SecretStr) -> Path:
    """The file of a checked SQLite URL, absolute unless the config was parsed without a place."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 (a tenth of a second, and few configs need it)

    return Path(make_url(url.get_secret_value()).database or "")


def _checked(value: SecretStr, info: ValidationInfo) -> SecretStr:
    from sqlalchemy.engine import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    text = value.get_secret_value()
    if not text:
        raise fail("is empty", fix=_SQLITE_FORM)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # SQLAlchemy's own words hold parts of the URL, perhaps the password.
        raise fail("is not a database URL (not shown: it may hold a password)", fix=_SQLITE_FORM) from None
    backend, _, driver = url.drivername.partition("+")
    if backend in COMING:
        return value
    if backend != SQLITE:
        raise fail(
            f"there is no sql target for {backend!r}",
            fix=_INSTEAD.get(backend) or f"{nearest(backend, [SQLITE])} ({_SQLITE_FORM})",
        )
    if driver not in ("", "pysqlite"):
        raise fail(f"the driver {driver!r} is not used here", fix="write sqlite:///FILE: Python's own driver")
    if url.host or url.username:
        raise fail("a SQLite URL has no host", fix=_SQLITE_FORM)
    if url.query:
        fix = "remove what stands behind '?': Tailrace sets what it needs"
        raise fail("a SQLite URL takes no options here", fix=fix)
    if url.database in (None, "", ":memory:"):
        fix = "name a file (sqlite:///copy.db), or write `kind: memory` in tests"
        raise fail("a database in memory would be gone with the process", fix=fix)
    base: Path = (info.context or {}).get("base", Path())
    path = base / Path(str(url.database)).expanduser()
    return SecretStr(url.set(database=str(path)).render_as_string(hide_password=False))


SqlUrl = Annotated[SecretStr, AfterValidator(_checked)]
