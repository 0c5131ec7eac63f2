"""`tailrace init --processor NAME`: an agent, its test, and what goes into the config."""

from __future__ import annotations

import keyword
import os
import re
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import typer
import yaml

from streamer import DEFAULT_PATH
from streamer.changes.topics import clean
from streamer.cli import print_json
from streamer.errors import ConfigError

NAME_LIMIT = 63  # characters: the derived table has it for a name, of which Postgres keeps so many
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TEMPLATES = {"agent.py.txt": "{module}.py", "test_agent.py.txt": "test_{module}.py"}
_CONFIG = """\
processors:
  {name}:
    agent: "{module}:{module}"              # {module}.py beside this file
    in: [SOURCE.public.orders]              # topics of `sources:`, or the `out` of another processor
    out: {name}                             # the topic of the derived rows; flows say `from: {name}`
    key: [id]
"""


def init(name: str, folder: Path, *, force: bool, as_json: bool) -> None:
    """Raises ConfigError: no name for it, one that another module or the config beside it has, or a file that
    is there (without `force`) or cannot be written."""
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} is a word of Python's own, which no module and no agent can have for a name",
            where="--processor",
            fix=f"choose another one, such as {name}_rows",
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a processor's module",
            where="--processor",
            fix="begin with a letter, and use letters, digits, '_' and '-'",
        )
    if len(name) > NAME_LIMIT:
        raise ConfigError(
            f"a name of {len(name)} characters; the limit is {NAME_LIMIT}",
            where="--processor",
            fix="choose a shorter one",
        )
    _check_free(name, folder / DEFAULT_PATH)
    if (hides := _other_module(module, folder)) is not None:
        raise ConfigError(
            f"the module {module!r} ({hides}) would hide {module}.py: it is found first",
            where="--processor",
            fix=f"choose another name, such as {name}_rows; nothing was written",
        )
    paths = {folder / path.format(module=module): template for template, path in _TEMPLATES.items()}
    if not force:
        for path in paths:
            if path.exists():
                fix = "keep it, write into another folder, or write over it with --force"
                raise ConfigError("is there already, and was not changed", fix=fix, where=str(path))
    for path, template in paths.items():
        text = resources.files("consumers.commands").joinpath(template).read_text(encoding="utf-8")
        _write(path, text.replace("{module}", module))
    snippet = _CONFIG.format(name=name, module=module)
    commands = [f"pytest {folder / f'test_{module}.py'}", f"tailrace process {name} --dry-run --from-start"]
    if as_json:
        print_json({"paths": [str(path) for path in paths], "config": snippet, "next": commands})
        return
    typer.echo("".join(f"wrote {path}\n" for path in paths))
    typer.echo(f"Put this into tailrace.yaml:\n\n{snippet}\nNext:")
    for line in commands:
        typer.echo(f"  {line}")


def _other_module(module: str, folder: Path) -> str | None:
    """What an import finds before the file in `folder`, which comes last on sys.path."""
    if module in sys.stdlib_module_names:
        return "of Python itself"
    package = folder / module / "__init__.py"
    if package.is_file():
        return str(package)
    try:
        spec = find_spec(module)
    except ValueError:  # it is imported, and does not say from where
        return "imported already"
    if spec is None or spec.origin is None:  # a folder without __init__.py gives way to a file
        return None
    is_own = Path(spec.origin).resolve() == (folder / f"{module}.py").resolve()
    return None if is_own else spec.origin


def _check_free(name: str, path: Path) -> None:
    """Against what the config beside it has. One that cannot be read is for the commands that run it."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        return
    sections = config if isinstance(config, dict) else {}
    sources, targets, processors = (
        found if isinstance(found := sections.get(section), dict) else {}
        for section in ("sources", "targets", "processors")
    )
    outs = {each.get("out"): other for other, each in processors.items() if isinstance(each, dict)}
    lower = {clean(str(source)).lower(): source for source in sources}
    if name in processors:
        what = f"there is a processor {name!r} already"
    elif name.lower() in lower:
        what = f"the source {lower[name.lower()]!r} has that name: topics of its tables begin with it"
    elif name in targets:
        what = "a target has that name: both would share the topic of dead letters"
    elif name in outs:
        what = f"the processor {outs[name]!r} publishes to the topic {name!r}"
    else:
        return
    raise ConfigError(
        what, where=f"--processor {name}, {path}", fix="choose another name; nothing was written"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigError(what, fix="choose another folder, or mend its rights", where=str(path)) from None
