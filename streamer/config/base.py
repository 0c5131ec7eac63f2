"""What every model of the config shares: frozen, no unknown keys, the nearest key named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from streamer.config.units import EmptyIsNone

# Under which a source, target or flow learns its own key; what begins so is never a key of the file.
NAME_KEY = "__name__"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if data is None:
            return {}
        if isinstance(data, dict):
            known = [f.alias or name for name, f in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise_unknown("unknown key", key, [k for k in known if k[:2] != "__"])
        return data


def raise_unknown(what: str, name: str, known: Iterable[str]) -> None:
    """A name that is not there, with the nearest one that is; the error's place is the key itself."""
    raise PydanticCustomError(
        "unknown_name",
        "{what} {name}",
        {"what": what, "name": repr(name), "key": name, "fix": nearest(name, known)},
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """What to do about a name that is not among the known ones."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "there are none"


def fail(what: str, *, key: str | int | tuple[str | int, ...] = (), fix: str = "") -> PydanticCustomError:
    """An error at `key` below the model that raises it."""
    return PydanticCustomError("check", "{what}", {"what": what, "key": key, "fix": fix})


def checked_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise fail("is not a name", fix="use letters, digits, '_' and '-', at most 100")
    return value


def _postgres_url(value: SecretStr) -> SecretStr:
    fix = "write postgresql://user:password@host:5432/database"
    text = value.get_secret_value()
    if not text:
        raise fail("is empty", fix=fix)
    try:
        conninfo_to_dict(text)
    except ProgrammingError:
        # libpq's own words hold parts of the URL, perhaps the password.
        raise fail("is not a PostgreSQL URL (not shown: it may hold a password)", fix=fix) from None
    return value


def _not_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise fail("is empty", fix="give it a value, or remove what needs it")
    return value


def _below_base(value: Path | None, info: ValidationInfo) -> Path | None:
    base: Path = (info.context or {}).get("base", Path())
    return None if value is None else base / value


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
OptionalPostgresUrl = Annotated[PostgresUrl | None, EmptyIsNone]
Url = Annotated[SecretStr, AfterValidator(_not_empty)]
OptionalSecret = Annotated[SecretStr | None, EmptyIsNone]
OptionalPath = Annotated[Path | None, EmptyIsNone, AfterValidator(_below_base)]


def describe_postgres(url: SecretStr) -> str:
    """'user@host:port/database', for messages: never the password."""
    parts = conninfo_to_dict(url.get_secret_value())
    host = parts.get("host") or parts.get("hostaddr") or "local socket"
    user, port = parts.get("user") or "(default user)", parts.get("port") or 5432
    return f"{user}@{host}:{port}/{parts.get('dbname') or parts.get('user') or ''}"
