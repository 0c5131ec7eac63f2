"""Functions of the user's own, named in the config as "package.module:function".

Owns how they are found: among what is installed, then in the folder that the config gives, which comes last
on sys.path: a file of the user's must not stand in for a package that this program imports later. A file that
is hidden so, and a module that raises, are told by their places.
What they are called with, and what they must give, belongs to their callers.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Any, Final

from streamer.errors import ConfigError, said_by

FOLDER_FIX = "or name its folder in the target's `modules`"

_PACKAGE: Final = Path(__file__).parent
_NOT_THE_USERS: Final = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(_PACKAGE.with_name(name)) for name in (_PACKAGE.name, "consumers")),
)


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

    Raises ConfigError: no such module or name, a module that raises, a file in `folder` that another module
    hides.
    """
    name, _, attribute = path.partition(":")
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module that is a program ends with an exit
        if (said := _raised(name, error, where)) is not None:
            raise said from error
        if isinstance(error, ModuleNotFoundError) and (said := _hidden(name, folder, where)) is not None:
            raise said from error
        raise ConfigError(
            f"the module {name!r} cannot be imported: {type(error).__name__}: {said_by(error)}",
            where=where,
            fix=f"it is looked for among what is installed and in {place}; correct `{path}`, install what it"
            f" needs, {folder_fix}",
        ) from error
    found = getattr(module, attribute, None)
    if (found is None or not wanted(found)) and (said := _hidden(name, folder, where)) is not None:
        raise said
    if found is None:
        names = [known for known, value in vars(module).items() if wanted(value) and known[:1] != "_"]
        near = get_close_matches(attribute, names, n=1)
        hint = f"did you mean {name}:{near[0]}?" if near else f"it has: {', '.join(sorted(names)) or 'none'}"
        what = f"the module {name!r} ({getattr(module, '__file__', None)}) has no function {attribute!r}"
        raise ConfigError(what, where=where, fix=hint)
    return found


def _raised(name: str, error: BaseException, where: str) -> ConfigError | None:
    """Of a module that is there; None: it is not, or cannot be read."""
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and frame.filename[:8] != "<frozen "
    ]
    if isinstance(error, SyntaxError) and error.filename and error.filename[:1] != "<":
        place, said = f"{error.filename}:{error.lineno}", f"{type(error).__name__}: {error.msg}"
    elif frames:
        frame = next(filter(_is_the_users, reversed(frames)), frames[-1])
        place, said = f"{frame.filename}:{frame.lineno}", f"{type(error).__name__}: {said_by(error)}"
    else:
        return None
    if isinstance(error, ConfigError):
        named = f"{error.where}: {error.what}" if error.where else error.what
        return ConfigError(f"{place}: {named}", where=where, fix=error.fix)
    fix = f"correct {place}"
    if isinstance(error, SystemExit):
        fix += ': what is a program stands below `if __name__ == "__main__":`'
    elif isinstance(error, ModuleNotFoundError) and error.name:
        fix += f", or install what has the module {error.name!r}"
    return ConfigError(f"the module {name!r} cannot be imported: {place} raises {said}", where=where, fix=fix)


def _is_the_users(frame: FrameSummary) -> bool:
    """And not of Python, of Tailrace, or of what is installed."""
    parents = {str(parent) for parent in Path(frame.filename).parents}
    return parents.isdisjoint(_NOT_THE_USERS)


def _hidden(name: str, folder: Path, where: str) -> ConfigError | None:
    """The module's file in `folder`, where another module has the name."""
    folder = folder.resolve()
    top = folder / name.partition(".")[0]
    stem = folder.joinpath(*name.split("."))
    file = next((each for each in _files_of(stem) if each.is_file()), None)
    module = sys.modules.get(name) or sys.modules.get(top.name)
    if file is None or module is None:
        return None
    other = getattr(module, "__file__", None)
    if other is not None and Path(other).resolve() in (each.resolve() for each in (file, *_files_of(top))):
        return None
    renamed = top if file.parent != folder else file
    return ConfigError(
        f"{file} is hidden by the module {module.__name__!r} ({other or 'of Python itself'}),"
        " which is found first",
        where=where,
        fix=f"give {renamed} another name, and write that name here",
    )


def _files_of(stem: Path) -> tuple[Path, Path]:
    return stem / "__init__.py", stem.with_name(f"{stem.name}.py")


def _a(word: str) -> str:
    return f"{'an' if word[:1] in 'aeio' else 'a'} {word}"
