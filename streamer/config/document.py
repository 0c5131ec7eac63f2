"""The YAML file as plain data, with the line of every key, and `${...}` filled in.

    ${NAME}           the environment variable; not set is an error
    ${NAME:-default}  the default when it is not set or empty
    ${file:/path}     the file's text without the newline at its end; relative to the config file
    $${               a literal ${

Keys are text as written (`on:` is no boolean) and `true` / `false` are the only booleans. Duplicate
keys are an error. What was filled in is remembered, so that no message ever prints it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from streamer.errors import ConfigError

Place = tuple[str | int, ...]

NODES_LIMIT = 100_000  # aliases of aliases multiply: far above any real file
DEPTH_LIMIT = 50  # an alias may hold itself
SHOWN_LIMIT = 20  # problems: a screen; the rest shows when these are mended
FILE_BYTES_LIMIT = 4 * 2**20  # a config file is kilobytes; more is the wrong file

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the file; `line` counts from 1, 0 when the whole file is meant."""

    what: str
    line: int
    fix: str = ""


class ConfigFileError(ConfigError):
    """Everything that is wrong in a config file, each with file:line."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        first = problems[0]
        super().__init__(first.what, fix=first.fix, where=_where(path, first.line))
        self._lines = [ConfigError(p.what, fix=p.fix, where=_where(path, p.line)) for p in problems]

    @property
    def problems(self) -> tuple[ConfigError, ...]:
        return tuple(self._lines)

    def __str__(self) -> str:
        text = "\n".join(ConfigError.__str__(line) for line in self._lines[:SHOWN_LIMIT])
        more = len(self._lines) - SHOWN_LIMIT
        return f"{text}\nand {more} more: `--json` has them all" if more > 0 else text


def _where(path: Path, line: int) -> str:
    return f"{path}:{line}" if line else str(path)


@dataclass(slots=True)
class Document:
    """`lines`: place -> line of its key (or list item); `filled`: places whose value came from `${}`."""

    data: object
    lines: dict[Place, int] = field(default_factory=dict)
    filled: set[Place] = field(default_factory=set)

    def line(self, place: Place) -> int:
        """The line of the place, or of the nearest place around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 0)


def read(text: str, path: Path, environ: Mapping[str, str]) -> Document:
    """Raises ConfigFileError for bad YAML, duplicate keys and references that cannot be filled in."""
    if len(text) > FILE_BYTES_LIMIT:
        raise ConfigFileError(
            path, [Problem("is larger than a config file can be", 0, "is it the right file?")]
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = f"is not YAML: {error.problem or error.context}"
        raise ConfigFileError(path, [Problem(what, line, "mend the indentation or quotes there")]) from None
    except yaml.YAMLError as error:
        raise ConfigFileError(path, [Problem(f"is not YAML: {str(error).splitlines()[0]}", 0)]) from None
    if not isinstance(node, MappingNode):
        fix = "start with `tailrace init`, or see config/tailrace.yaml"
        raise ConfigFileError(path, [Problem("holds no keys", 0, fix)])
    reader = _Reader(path.parent, environ)
    data = reader.value(node, ())
    if reader.problems:
        raise ConfigFileError(path, reader.problems)
    return Document(data, reader.lines, reader.filled)


class _Reader:
    def __init__(self, base: Path, environ: Mapping[str, str]) -> None:
        self.base = base
        self.environ = environ
        self.problems: list[Problem] = []
        self.lines: dict[Place, int] = {}
        self.filled: set[Place] = set()
        self.nodes = 0

    def value(self, node: Node, place: Place) -> object:
        self.nodes += 1
        if len(place) > DEPTH_LIMIT or self.nodes > NODES_LIMIT:
            if self.nodes <= NODES_LIMIT + 1 or not self.problems:
                self.problems.append(Problem("an alias here repeats itself without end", _line(node)))
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, place)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.lines[(*place, index)] = _line(item)
                items.append(self.value(item, (*place, index)))
            return items
        assert isinstance(node, ScalarNode)
        return self.scalar(node, place)

    def mapping(self, node: MappingNode, place: Place) -> dict[str, object]:
        result: dict[str, object] = {}
        merged: dict[str, object] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem("a key must be a plain name", line))
                continue
            key = str(key_node.value)
            if key in first_line:
                what = f"the key {key!r} is there twice (first in line {first_line[key]})"
                self.problems.append(Problem(what, line, "remove one of them"))
                continue
            first_line[key] = line
            if key == "<<":
                parts = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for part in parts:
                    base = self.value(part, place)
                    if isinstance(base, dict):
                        merged = base | merged
                continue
            self.lines[(*place, key)] = line
            result[key] = self.value(value_node, (*place, key))
        return merged | result if merged else result

    def scalar(self, node: ScalarNode, place: Place) -> object:
        text = str(node.value)
        if "${" in text:
            return self.fill(text, _line(node), place)
        if node.style is not None or (node.tag == "tag:yaml.org,2002:str" and text != ""):
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "True", "false", "False"):
            return text[0] in "tT"
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def fill(self, text: str, line: int, place: Place) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            self.filled.add(place)
            if match[1] is None:
                self.problems.append(
                    Problem("'${' has no '}'", line, "close it, or write $${ for a literal ${")
                )
                return ""
            return self.reference(match[1], line)

        return _REFERENCE.sub(replace, text)

    def reference(self, inside: str, line: int) -> str:
        if inside.startswith("file:"):
            path = self.base / inside.removeprefix("file:")
            try:
                return path.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "is not UTF-8 text"
                what = f"${{file:{inside.removeprefix('file:')}}}: {reason}"
                self.problems.append(Problem(what, line, "make the file readable, or change the path"))
                return ""
        match = _NAME.fullmatch(inside)
        if match is None:
            what = f"'${{{inside}}}' is no reference"
            fix = "write ${NAME}, ${NAME:-default} or ${file:/path}; $${ is a literal ${"
            self.problems.append(Problem(what, line, fix))
            return ""
        name, default = match[1], match[2]
        value = self.environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            what = f"the environment variable {name} is not set"
            self.problems.append(
                Problem(what, line, f"export {name}=..., or give it a default: ${{{name}:-...}}")
            )
            return ""
        return value


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
