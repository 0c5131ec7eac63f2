"""Reading a config file: YAML -> models, and every error with file:line and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamer import DEFAULT_PATH
from streamer.config.base import closest
from streamer.config.document import ConfigFileError, Document, Place, Problem, read
from streamer.config.root import Config
from streamer.config.units import in_the_unit_of
from streamer.errors import ConfigError

# What pydantic puts in an error's place beside the file's own keys.
_TAGS = frozenset(
    {"exclude-word", "rule", "cast-word", "pivot-column", "column-name", "column-rule", "flow-name"}
    | {
        "inline-flow",
        "postgres",
        "redis",
        "pull",
        "query",
        "sql",
        "pgvector",
        "str",
        "dict[str,str]",
        "[key]",
    }
)

# Values of these kinds of error are words and numbers of the file, never secrets.
_SHOWN = {
    "literal_error",
    "unit",
    "int_parsing",
    "int_type",
    "float_parsing",
    "bool_parsing",
    "union_tag_invalid",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
}
_LIMITS = {
    "greater_than": ("gt", "must be more than {limit}"),
    "greater_than_equal": ("ge", "must be {limit} or more"),
    "less_than": ("lt", "must be less than {limit}"),
    "less_than_equal": ("le", "must be {limit} or less"),
}


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> Config:
    """Raises ConfigError: each problem with file:line, and the nearest key for a misspelt one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        fix = "write one with `tailrace init`, or name it with -c FILE"
        raise ConfigError("there is no such config file", fix=fix, where=str(path)) from None
    except IsADirectoryError:
        fix = f"name the file in it: -c {path / DEFAULT_PATH.name}"
        raise ConfigError("is a folder", fix=fix, where=str(path)) from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", fix="mend its rights", where=str(path)
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", fix="save it as UTF-8", where=str(path)) from None
    return parse(text, path, environ=environ)


def parse(text: str, path: Path = DEFAULT_PATH, *, environ: Mapping[str, str] = os.environ) -> Config:
    """The same for text that is at hand; `path` names it in messages and is where relative paths start."""
    document = read(text, path, environ)
    assert isinstance(document.data, dict)
    try:
        return Config.model_validate({**document.data, "__path__": path}, context={"base": path.parent})
    except ValidationError as error:
        problems = [_problem(document, e) for e in error.errors(include_url=False)]
    raise ConfigFileError(path, sorted(problems, key=lambda p: p.line))


def explained(error: ValidationError, data: object) -> list[Problem]:
    """The faults of data that is of no file, in the words of one."""
    return [_problem(Document(data), each) for each in error.errors(include_url=False)]


def _problem(document: Document, error: Any) -> Problem:
    context: dict[str, Any] = error.get("ctx") or {}
    place = _place(document.data, error["loc"])
    kind: str = error["type"]
    key = context.get("key", ())
    if kind in ("unknown_name", "check"):
        place = (*place, *((key,) if isinstance(key, (str, int)) else key))
    if kind == "missing" and place[-1:] != error["loc"][-1:]:
        place = (*place, error["loc"][-1])  # of a section with nothing in it
    name = ".".join(str(part) for part in place)
    line = document.line(place)
    fix = str(context.get("fix", ""))
    if kind == "unknown_name":
        inside = ".".join(str(part) for part in place[:-1])
        return Problem(f"{error['msg']}{f' in {inside}' if inside else ''}", line, fix)
    what, fix = _words(error, kind, context, fix)
    value = error.get("input")
    if kind in _LIMITS:
        value = _at(document.data, place, value)
        limit, text = _LIMITS[kind]
        what = text.format(limit=in_the_unit_of(value, context[limit]))
    if kind in _SHOWN and place not in document.filled:
        if kind == "union_tag_invalid" and isinstance(value, dict):
            value = value.get("kind")
        if isinstance(value, (str, int, float)):
            what = f"{value!r} {what}"
    return Problem(f"{name}: {what}" if name else what, line, fix)


def _words(error: Any, kind: str, context: dict[str, Any], fix: str) -> tuple[str, str]:
    """pydantic's message in this program's words: (what, fix)."""
    if kind == "missing":
        return "is missing", "add it; see docs/configuration.md"
    if kind == "literal_error":
        return "is not one of the choices", f"write {context['expected']}"
    if kind == "union_tag_invalid":
        return "is not a kind", f"write one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        given = error.get("input")
        near = closest("kind", [str(key) for key in given]) if isinstance(given, dict) else None
        return "has no `kind`", f"{near!r}: did you mean 'kind'?" if near else "add kind: postgres"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must hold keys", "write it as `key: value` lines, indented"
    if kind in ("tuple_type", "list_type"):
        return "must be a list", "write it as [a, b]"
    if kind in ("unit", "check"):
        return str(error["msg"]), fix
    return str(error["msg"])[:1].lower() + str(error["msg"])[1:], fix or "see docs/configuration.md"


def _at(data: object, place: Place, otherwise: object) -> object:
    """What the file has there: a size is a number already where its limit is checked."""
    for part in place:
        try:
            data = data[part]  # type: ignore[index]
        except (TypeError, LookupError):
            return otherwise
    return data


def _place(data: object, loc: tuple[str | int, ...]) -> Place:
    """pydantic's loc without the tags of unions, which the file does not hold."""
    place: list[str | int] = []
    for part in loc:
        if isinstance(data, dict):
            if part not in data and part in _TAGS:
                continue
            data = data.get(part)  # a missing key is still the error's place
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        place.append(part)
    return tuple(place)
