"""What flows, processors and reconciles name of the file: sources, entities and targets that must be there.

Judged by names alone, so that a fault elsewhere in the file hides none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from streamer.config.base import fail, nearest
from streamer.config.patterns import may_meet

Place = tuple[str | int, ...]

_COMMA = re.compile(r",\s*")
_PARTS = {"postgres": 3, "redis": 2, "pull": 2, "query": 1}
_FORMS = {3: "{0}.schema.table", 2: "{0}.entity", 1: "{0}"}


@dataclass(frozen=True, slots=True)
class Names:
    """`sources`: name -> (kind, the names of its entities); `outs`: of processors."""

    sources: Mapping[str, tuple[str, tuple[str, ...]]]
    outs: tuple[str, ...]
    targets: tuple[str, ...]


def names_of(data: Mapping[str, Any]) -> Names:
    """Of a file as it was written, whatever else is wrong with it."""
    sources = {
        name: (str(source.get("kind")), tuple(map(str, _mapping(source, "entities"))))
        for name, source in _mappings(data, "sources").items()
    }
    outs = tuple(str(processor.get("out")) for processor in _mappings(data, "processors").values())
    return Names(sources, outs, tuple(map(str, _mapping(data, "targets"))))


def flow_faults(data: Mapping[str, Any]) -> Iterator[PydanticCustomError]:
    """What the flows of a file name, and is not in it."""
    names = names_of(data)
    for name, flow in _mappings(data, "flows").items():
        pattern, to = flow.get("from"), flow.get("to")
        if isinstance(pattern, str) and pattern:
            yield from source_faults(names, pattern, ("flows", name, "from"))
        if isinstance(to, str) and to:
            yield from target_faults(names, to.split(".", 1)[0], ("flows", name, "to"))


def source_faults(names: Names, pattern: str, key: Place) -> Iterator[PydanticCustomError]:
    """`pattern`: as in a flow's `from`, standing at `key`."""
    head, dot, table = pattern.partition(".")
    known = tuple(f"{name}." for name in (*names.sources, *names.outs))
    if any(part.startswith(known) for part in _COMMA.split(pattern)[1:]):
        fix = "write an entry for each, or one pattern with *"
        yield fail(f"{pattern!r} is a list, and one name or pattern stands here", key=key, fix=fix)
        return
    if head in names.outs:
        if dot and not table:
            fix = f"write {head}, or {head}.TABLE of a processor that routes"
            yield fail(f"{pattern!r} does not name what to take", key=key, fix=fix)
        return
    if head not in names.sources:
        fix = nearest(head, [*names.sources, *names.outs])
        yield fail(f"there is no source {head!r}", key=key, fix=fix)
        return
    kind, entities = names.sources[head]
    if kind not in _PARTS:
        return  # told of the source
    wanted = _PARTS[kind]
    parts = pattern.split(".", wanted - 1)
    if len(parts) != wanted or not all(parts) or (wanted < 3 and "." in parts[-1]):
        example = f" (for all of a schema: {head}.public.*)" if wanted == 3 else ""
        fix = f"write {_FORMS[wanted].format(head)}{example}"
        yield fail(f"{pattern!r} does not name what to take", key=key, fix=fix)
    elif wanted == 2 and entities and not any(may_meet(parts[1], entity) for entity in entities):
        fix = nearest(parts[1], entities)
        yield fail(f"{head!r} has no entity {parts[1]!r}", key=key, fix=fix)


def target_faults(names: Names, target: str, key: Place) -> Iterator[PydanticCustomError]:
    if target not in names.targets:
        yield fail(f"there is no target {target!r}", key=key, fix=nearest(target, names.targets))


def _mapping(data: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = data.get(part)
    return found if isinstance(found, Mapping) else {}


def _mappings(data: Mapping[str, Any], part: str) -> dict[str, Mapping[str, Any]]:
    """Those of its entries that hold keys."""
    return {str(name): entry for name, entry in _mapping(data, part).items() if isinstance(entry, Mapping)}
