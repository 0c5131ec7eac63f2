"""What every model of the config shares: frozen, no unknown keys, the nearest key named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from streamer.config.conninfo import parts_of
from streamer.config.units import EmptyIsNone
from streamer.errors import ConfigError

# Under which a source, target or flow learns its own key; what begins so is never a key of the file.
NAME_KEY = "__name__"

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,100}")  # one that begins with '-' is an option to every command


class Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=False,
        defer_build=True,  # most are a part of Config alone: each on its own costs a command 30 ms
    )

    @model_validator(mode="wrap")
    @classmethod
    def _known_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Each unknown key is an error of its own, beside those of the keys that are known.

        The value of a misspelt key counts as that of the key which is meant, so that neither that one nor
        what refers to it is said to be missing.
        """
        if data is None:
            data = {}
        if not isinstance(data, dict):
            return handler(data)
        known = [f.alias or name for name, f in cls.model_fields.items()]
        named = cls._file_keys()
        errors = [
            InitErrorDetails(type=unknown("unknown key", key, named), input=None)
            for key in data
            if key not in known
        ]
        if not errors:
            return handler(data)
        meant = cls._meant(data)
        try:
            handler({**meant, **{key: value for key, value in data.items() if key in known}})
        except ValidationError as error:
            found = error.errors(include_url=False)
            errors += [again(each) for each in found if not each["loc"] or each["loc"][0] not in meant]
        raise ValidationError.from_exception_data(cls.__name__, errors, hide_input=True)

    @classmethod
    def _file_keys(cls) -> list[str]:
        """Those that a file may have."""
        names = [f.alias or name for name, f in cls.model_fields.items()]
        return [name for name in names if name[:2] != "__"]

    @classmethod
    def _meant(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Keys that are missing and seem to be there misspelt, with their values."""
        known = cls._file_keys()
        others = {key: value for key, value in data.items() if key not in known and key[:2] != "__"}
        near = {closest(key, known): value for key, value in others.items()}
        return {key: value for key, value in near.items() if key is not None and key not in data}


def again(error: ErrorDetails) -> InitErrorDetails:
    """An error that pydantic has printed, to be raised with others."""
    kind: Any = error["type"]
    context = error.get("ctx", {})
    if kind in ("unknown_name", "check", "unit"):
        kind = PydanticCustomError(kind, "{said}", {**context, "said": error["msg"]})
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


def unknown(what: str, name: str, known: Iterable[str]) -> PydanticCustomError:
    """A name that is not there, with the nearest one that is; the error's place is the key itself."""
    return PydanticCustomError(
        "unknown_name",
        "{what} {name}",
        {"what": what, "name": repr(name), "key": name, "fix": nearest(name, known)},
    )


def closest(name: str, known: Sequence[str]) -> str | None:
    """The known name that may be meant."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)


def nearest(name: str, known: Iterable[str], quoted: Callable[[str], str] = repr) -> str:
    """What to do about a name that is not among the known ones. `quoted`: as it is to be written."""
    names = list(known)
    close = closest(name, names)
    if close:
        return f"did you mean {quoted(close)}?"
    return f"known here: {', '.join(names)}" if names else "there are none"


def for_shell(name: str) -> str:
    """In quotes, to be pasted into a command."""
    return "'" + name.replace("'", "'\"'\"'") + "'"


def no_such(kind: str, name: str, known: Iterable[str], path: Path) -> ConfigError:
    """A name on the command line that the file does not have: the file, its names and the nearest one."""
    names = list(known)
    close = closest(name, names)
    hint = f"did you mean {for_shell(close)}? " if close else ""
    fix = f"{hint}the file's {kind.replace(' or ', 's or ')}s: {', '.join(names) or 'none'}"
    return ConfigError(f"there is no {kind} {name!r}", fix=fix, where=str(path))


def fail(what: str, *, key: str | int | tuple[str | int, ...] = (), fix: str = "") -> PydanticCustomError:
    """An error at `key` below the model that raises it."""
    return PydanticCustomError("check", "{what}", {"what": what, "key": key, "fix": fix})


def checked_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise fail("is not a name", fix="use letters, digits, '_' and '-' (not first), at most 100")
    return value


Name = Annotated[str, AfterValidator(checked_name)]


def is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


def _postgres_url(value: SecretStr) -> SecretStr:
    fix = "write postgresql://user:password@host:5432/database"
    text = value.get_secret_value()
    if not text:
        raise fail("is empty", fix=fix)
    try:
        parts = parts_of(text)
    except ValueError:
        raise fail("is not a PostgreSQL URL (not shown: it may hold a password)", fix=fix) from None
    if _is_cut(text):
        what = "its login has a / or ? that cuts it in two (not shown: it may hold a password)"
        raise fail(what, fix=f"{fix}; in the password write / ? # @ % as %2F %3F %23 %40 %25")
    if not all(is_port(port) for port in parts.get("port", "").split(",") if port):
        raise fail("its port is no number from 1 to 65535 (not shown: it may hold a password)", fix=fix)
    return value


def _is_cut(url: str) -> bool:
    """The @ of a login stands behind what libpq takes for the login and the hosts: a part of a password would
    be a port or a database to it, and these are shown. An @ of the parameters, as of user=me@server, is none.
    """
    scheme, _, rest = url.partition("://")
    login = re.split("[/?]", rest, maxsplit=1)[0]
    behind = rest[len(login) :]
    if behind.startswith("/"):
        behind = behind.partition("?")[0]
    return scheme in ("postgres", "postgresql") and "@" in behind and "@" not in login


def _below_base(value: Path | None, info: ValidationInfo) -> Path | None:
    base: Path = (info.context or {}).get("base", Path())
    return None if value is None else base / value


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
OptionalPostgresUrl = Annotated[PostgresUrl | None, EmptyIsNone]
OptionalSecret = Annotated[SecretStr | None, EmptyIsNone]
OptionalPath = Annotated[Path | None, EmptyIsNone, AfterValidator(_below_base)]
BasePath = Annotated[Path, AfterValidator(_below_base)]


def describe_postgres(url: SecretStr) -> str:
    """'user@host:port/database', for messages: never the password."""
    parts = parts_of(url.get_secret_value())
    host = parts.get("host") or parts.get("hostaddr") or "local socket"
    user, port = parts.get("user") or "(default user)", parts.get("port") or 5432
    return f"{user}@{host}:{port}/{parts.get('dbname') or parts.get('user') or ''}"
