"""Which tables the flows of a config write, and that each has one writer (H3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic_core import PydanticCustomError

from streamer.config.base import fail
from streamer.config.flows import Flow, RedisTarget, SqlTarget, Target
from streamer.config.patterns import fits, is_pattern, may_meet
from streamer.config.redis_entities import RedisSource
from streamer.config.sources import PullSource, Source

_SCHEMA = "main"  # SQLite's: it has no other


class Claim(NamedTuple):
    """What a flow writes. `pattern`: of the topics; `place`: schema and table in the target, as patterns."""

    flow: Flow
    pattern: str
    place: tuple[str, str]

    @property
    def is_wild(self) -> bool:
        return is_pattern("".join(self.place))


class Writers:
    def __init__(
        self, sources: Mapping[str, Source], targets: Mapping[str, Target], flows: Mapping[str, Flow]
    ) -> None:
        self._sources = sources
        self._targets = targets
        self._flows = [flow for flow in flows.values() if self._has_tables(flow)]
        self._claims = {flow.name: self._claims_of(flow) for flow in self._flows}

    def _has_tables(self, flow: Flow) -> bool:
        return flow.key is None or not isinstance(self._targets[flow.target], RedisTarget)

    def faults(self) -> Iterator[PydanticCustomError]:
        """Two sources never write one table: their versions cannot be compared."""
        for index, flow in enumerate(self._flows):
            for other in self._flows[:index]:
                claim = self._clash(self._claims[flow.name], self._claims[other.name])
                if claim is not None:
                    table = ".".join(claim.place)
                    what = f"the flows {other.name!r} and {flow.name!r} both write {flow.target}.{table}"
                    yield fail(what, key=("flows", flow.name, "to"), fix=self._cure(flow, other))

    def _claims_of(self, flow: Flow) -> list[Claim]:
        parts = flow.source_pattern.split(".", 2)
        source = self._sources.get(flow.source)
        if isinstance(source, RedisSource | PullSource) and len(parts) > 1:
            entities = [entity for entity in source.entities if fits(parts[1], entity)]
            if entities:
                return [
                    Claim(flow, f"{flow.source}.{entity}", self._place(flow, flow.source, entity))
                    for entity in entities
                ]
        if source is None:  # a processor's rows: `out`, or `out`.TABLE
            table = flow.source_pattern.partition(".")[2] or flow.source_pattern
            return [Claim(flow, flow.source_pattern, self._place(flow, flow.source, table))]
        schema, table = (parts[1], parts[2]) if len(parts) == 3 else ("*", parts[-1])
        return [Claim(flow, flow.source_pattern, self._place(flow, schema, table))]

    def _place(self, flow: Flow, schema: str, table: str) -> tuple[str, str]:
        place = flow.place(schema, table)
        if isinstance(self._targets[flow.target], SqlTarget):  # no schemas there, and names in any case
            return _SCHEMA, place[1].lower()
        return place

    @staticmethod
    def _clash(claims: list[Claim], others: list[Claim]) -> Claim | None:
        """The first of the claims that one of the others meets."""
        for claim in claims:
            for other in others:
                if claim.flow.target != other.flow.target:
                    continue
                if not all(may_meet(a, b) for a, b in zip(claim.place, other.place, strict=True)):
                    continue
                definite = claim.place == other.place and "*" not in "".join(claim.place)
                apart = claim.flow.source == other.flow.source and not may_meet(claim.pattern, other.pattern)
                if definite or not apart:
                    return claim
        return None

    # What to do

    def _cure(self, flow: Flow, other: Flow) -> str:
        """A place that is nobody's, tried."""
        for moved in (flow, other):
            for to in self._places(moved):
                if self._is_free(moved, to):
                    return f"one table has one writer: write `to: {to}` in the flow {moved.name!r}"
        if isinstance(self._targets[flow.target], SqlTarget):
            why = "SQLite has no schemas, so tables of one name meet"
            return f"{why}: give one of them a target of its own, with another file"
        return "one table has one writer: give one of them a target of its own, with another database"

    def _places(self, flow: Flow) -> Iterator[str]:
        """Where the flow's rows could go instead."""
        wild = is_pattern(flow.source_pattern)
        table = flow.table or flow.source_pattern.rpartition(".")[2]
        if isinstance(self._targets[flow.target], SqlTarget):
            if not wild:
                yield f"{flow.target}.{_SCHEMA}.{flow.name}_{table}"
            return
        yield f"{flow.target}.{flow.name}" + ("" if flow.table is None else f".{table}")

    def _is_free(self, flow: Flow, to: str) -> bool:
        claims = self._claims_of(flow.model_copy(update={"to": to}))
        others = [each for name, each in self._claims.items() if name != flow.name]
        return all(self._clash(claims, each) is None for each in others)
