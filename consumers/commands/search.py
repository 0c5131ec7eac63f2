"""`tailrace search TARGET "words"`: the nearest rows of a pgvector target, by the flow's own function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers.targets.vectors_search import Hit, search
from streamer.cli import print_json
from streamer.config import Config, Flow, VectorTarget, load
from streamer.config.base import no_such
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError

EXCERPT_SIGNS = 160


def show(path: Path, target: str, words: str, *, flow: str, limit: int, as_json: bool) -> int:
    """The exit code: 1 when nothing was found."""
    config = load(path)
    settings = config.targets.get(target)
    if settings is None:
        raise no_such("target", target, config.targets, config.path)
    if not isinstance(settings, VectorTarget):
        vectors = [name for name, each in config.targets.items() if isinstance(each, VectorTarget)]
        raise ConfigError(
            f"the target {target!r} is of kind {settings.kind}, and only pgvector has texts to search",
            where=str(config.path),
            fix=f"the file's pgvector targets: {', '.join(vectors) or 'none'}",
        )
    hits: list[Hit] = []
    for one in _flows(config, target, flow):
        hits += uvloop.run(search(settings, one, words, limit))
    hits = sorted(hits, key=lambda hit: hit.distance)[:limit]
    if as_json:
        print_json([_plain(hit) for hit in hits])
    elif not hits:
        typer.echo("nothing is there to be found")
    else:
        Console().print(_table(hits))
    return EXIT_OK if hits else EXIT_FINDING


def _flows(config: Config, target: str, wanted: str) -> list[Flow]:
    """Distances of two models do not compare, so that the flow is named where there are several models."""
    flows = {name: flow for name, flow in config.flows.items() if flow.target == target}
    if wanted:
        if wanted not in flows:
            raise no_such("flow", wanted, flows, config.path)
        return [flows[wanted]]
    models = {(flow.embed, flow.dimensions) for flow in flows.values()}
    if len(models) == 1:
        return list(flows.values())
    raise ConfigError(
        f"the flows to {target} have {len(models)} embedding functions, whose distances do not compare",
        where=str(config.path),
        fix=f"say which: --flow {' or --flow '.join(flows)}" if flows else f"add a flow with to: {target}",
    )


def _plain(hit: Hit) -> dict[str, Any]:
    return {
        "flow": hit.flow,
        "table": hit.table,
        "distance": round(hit.distance, 6),
        "key": _json(hit.key),
        "chunk": hit.chunk,
        "text": hit.text,
        "row": _json(hit.row),
    }


def _json(row: dict[str, Any]) -> Any:
    """Values that JSON has no form for as their text."""
    return orjson.loads(orjson.dumps(row, default=str))


def _table(hits: list[Hit]) -> Table:
    table = Table(box=None, pad_edge=False)
    several = len({hit.table for hit in hits}) > 1
    for name in ("distance", *(("table",) if several else ()), "key", "text"):
        table.add_column(name, overflow="fold", justify="right" if name == "distance" else "left")
    for hit in hits:
        key = ", ".join(f"{name} {value}" for name, value in hit.key.items())
        text = " ".join(hit.text.split())
        excerpt = text if len(text) <= EXCERPT_SIGNS else text[: EXCERPT_SIGNS - 1] + "…"
        cells = [Text(hit.table)] if several else []
        table.add_row(f"{hit.distance:.3f}", *cells, Text(key), Text(excerpt))
    return table
