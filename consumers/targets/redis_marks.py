"""How far each node of a Redis Cluster has come: what tells that one of them has lost rows.

Nodes fail one by one. One that comes back without its last second, or a replica that takes over and was
behind, has lost rows whose checkpoint is elsewhere. So before a checkpoint moves, its next offset is written
to one slot of every master, behind the batch's rows; a mark that is lower than the checkpoint, or gone, is a
node that has lost what came after it, and the checkpoint goes back to the mark.

    _tailrace:marks:{<tag>}       hash: [flow, topic, partition] -> next offset; one a master
    _tailrace:{state}:marked      hash: [flow, topic, partition] -> tags of its marks, as of its last move
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from consumers.apply.checkpoint import Move, Place
from consumers.targets.redis_cluster import Call, ClusterSession
from consumers.targets.redis_layout import CLUSTER, Arg
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_slots import never_key, tags
from consumers.targets.redis_state_scripts import LOWER, MARK
from consumers.targets.redis_write import place_field

_MARK, _LOWER = Script(MARK), Script(LOWER, CLUSTER)
STATE_KEYS = (CLUSTER.key("identity"), CLUSTER.key("never"))  # of every script on the state; see never_key


def mark_key(tag: str) -> str:
    return f"_tailrace:marks:{{{tag}}}"


class Marks:
    """`tags`: of the marks that a place has, as one text; "" when it has none."""

    def __init__(self, session: ClusterSession) -> None:
        self._session = session
        self._tags: dict[Place, frozenset[str]] = {}

    def now(self) -> list[str]:
        """Where the next ones go."""
        return [tags()[slot] for slot in self._session.masters]

    async def put(self, moves: Iterable[Move], where: Sequence[str]) -> set[Place]:
        """Places whose mark is lower than their checkpoint: somewhere rows are lost."""
        wanted = [move for move in moves if move.next_offset != move.expected]
        if not wanted:
            return set()
        calls = []
        for tag in where:
            args: list[Arg] = []
            for move in wanted:
                known = "1" if tag in self._tags.get(move.place, ()) else ""
                args += (place_field(move.place), move.expected, move.next_offset, known)
            calls.append(Call(_MARK, (mark_key(tag), never_key(tag)), args))
        replies = await self._session.scripts(calls)
        return {wanted[number].place for reply in replies for number in reply}

    def moved(self, moves: Iterable[Move], where: Sequence[str]) -> None:
        chosen = frozenset(where)
        for move in moves:
            if move.next_offset != move.expected:
                self._tags[move.place] = chosen

    async def lowest(self, places: Sequence[Place]) -> dict[Place, int]:
        """Read after their checkpoints: of places that have marks, the lowest."""
        if not places:
            return {}
        fields = [place_field(place) for place in places]
        texts = await self._session.command("HMGET", CLUSTER.key("marked"), *fields)
        known = {
            place: frozenset(text.decode().split(","))
            for place, text in zip(places, texts, strict=True)
            if text
        }
        for place in places:
            self._tags.pop(place, None)
        self._tags |= known
        found: dict[Place, int] = {}
        for tag in sorted(set().union(*known.values())):
            here = [place for place, its in known.items() if tag in its]
            marks = await self._session.command("HMGET", mark_key(tag), *map(place_field, here))
            for place, mark in zip(here, marks, strict=True):
                found[place] = min(found.get(place, int(mark or 0)), int(mark or 0))
        return found

    async def lower(self, stands: Mapping[Place, int]) -> bool:
        """Checkpoints that are ahead of a mark go back to it; whether any did. `stands`: as they were."""
        behind = {
            place: mark for place, mark in (await self.lowest(list(stands))).items() if mark < stands[place]
        }
        await self._session.scripts(
            [Call(_LOWER, STATE_KEYS, (place_field(p), stands[p], mark)) for p, mark in behind.items()]
        )
        for place in behind:
            del self._tags[place]
        return bool(behind)
