"""Functions of the user's own, named in the config as "package.module:function".

Owns how they are found: among what is installed, then in the folder that the config gives, which comes last
on sys.path: a file of the user's must not stand in for a package that this program imports later.
What they are called with, and what they must give, belongs to their callers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from streamer.errors import ConfigError

FOLDER_FIX = "or name its folder in the target's `modules`"


def load_function(path: str, folder: Path, *, where: str) -> Callable[..., Any]:
    """As `load_object`, and it can be called."""
    found = load_object(path, folder, where=where)
    if not callable(found):
        raise ConfigError(
            f"{path!r} is {_a(type(found).__name__)}, and not a function",
            where=where,
            fix="name a function, or an object that can be called",
        )
    function: Callable[..., Any] = found
    return function


def load_object(
    path: str,
    folder: Path,
    *,
    where: str,
    folder_fix: str = FOLDER_FIX,
    wanted: Callable[[Any], bool] = callable,
) -> Any:
    """`folder` is put on sys.path. `wanted`: what else the module has that could be meant.

    Raises ConfigError: no such module or name.
    """
    name, _, attribute = path.partition(":")
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module that is a program ends with an exit
        raise ConfigError(
            f"the module {name!r} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            fix=f"it is looked for among what is installed and in {place}; correct `{path}`, install what it"
            f" needs, {folder_fix}",
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [known for known, value in vars(module).items() if wanted(value) and known[:1] != "_"]
        near = get_close_matches(attribute, names, n=1)
        hint = f"did you mean {name}:{near[0]}?" if near else f"it has: {', '.join(sorted(names)) or 'none'}"
        what = f"the module {name!r} ({getattr(module, '__file__', None)}) has no function {attribute!r}"
        raise ConfigError(what, where=where, fix=hint)
    return found


def _a(word: str) -> str:
    return f"{'an' if word[:1] in 'aeio' else 'a'} {word}"
