"""What waits in a Redis target for a person (H24), and for gates.

    _tailrace:parked          set of queues: [flow, topic, partition] and the Kafka key behind it
    _tailrace:parked:<queue>  list of one key's entries, in their order
    _tailrace:asked           hash: queue -> [what is asked, by whom]
    _tailrace:gates           hash: [flow, topic] -> "state since_us up_to_us decided_by rest"
    _tailrace:deleted:<flow and topic>   zset by time: "us partition rows"

On a cluster `_tailrace:{state}:` stands in place of `_tailrace:`. Entries are JSON, bytes in base64. Owns
these forms; runs nothing.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from orjson import dumps, loads

from consumers.apply.checkpoint import Place
from consumers.targets.base import Batch, Gate, Parked
from consumers.targets.redis_layout import Arg, Space

DELETED_KEEP_S = 3600.0  # counts of deletes: longer than any gate looks back


def queue_of(place: Place, key: bytes) -> bytes:
    return dumps(list(place)) + key


def place_of(queue: bytes) -> Place:
    """The place, in front of the key."""
    return Place(*loads(queue[: _place_end(queue)]))


def _place_end(queue: bytes) -> int:
    """Behind the array: a bracket in a name of a flow or topic stands inside quotes."""
    quoted = escaped = False
    for at, char in enumerate(queue):
        if escaped:
            escaped = False
        elif char == 0x5C:
            escaped = True
        elif char == 0x22:
            quoted = not quoted
        elif char == 0x5D and not quoted:
            return at + 1
    raise ValueError("no place in the name of a queue")


def deleted_key(space: Space, flow: str, topic: str) -> str:
    return space.key(f"deleted:{dumps([flow, topic]).decode()}")


def state_args(batch: Batch, moves: Mapping[Place, int], space: Space) -> list[Arg]:
    """What the batch parks, un-parks and counts, as the script reads it."""
    args: list[Arg] = [len(batch.unparks)]
    for place, key in batch.unparks:
        wish = batch.wishes.get((place, key))
        args += (moves.get(place, 0), queue_of(place, key), "*" if wish is None else wish)
    args.append(len(batch.parks))
    for entry in batch.parks:
        asked = asked_text(entry.asked, entry.asked_by)
        args += (moves.get(entry.place, 0), queue_of(entry.place, entry.key), asked, entry_text(entry))
    deleted = [(place, rows) for place, rows in batch.deleted.items() if rows]
    args.append(len(deleted))
    for place, rows in deleted:
        args += (moves.get(place, 0), deleted_key(space, place.flow, place.topic), place.partition, rows)
    return args


def asked_text(action: str, who: str) -> bytes:
    return dumps([action, who]) if action else b""


def entry_text(entry: Parked) -> bytes:
    return dumps(
        {
            "sequence": entry.sequence,
            "offset": entry.offset,
            "version": entry.version,
            "payload": b64encode(entry.payload).decode(),
            "decodes": entry.decodes,
            "schema": entry.schema,
            "table": entry.table,
            "waiting": entry.waiting,
            "code": entry.code,
            "message": entry.message,
            "attempts": entry.attempts,
            "parked_us": entry.parked_us,
        }
    )


def entry_of(queue: bytes, text: bytes, asked: bytes) -> Parked:
    found: dict[str, Any] = loads(text)
    found["payload"] = b64decode(found["payload"])
    found["version"] = tuple(found["version"])
    action, who = loads(asked) if asked else ("", "")
    end = _place_end(queue)
    return Parked(Place(*loads(queue[:end])), queue[end:], **found, asked=action, asked_by=who)


# Gates


def gate_field(gate: Gate) -> bytes:
    return dumps([gate.flow, gate.topic])


def gate_fields_of(flow: str) -> bytes:
    """What the fields of a flow's gates begin with."""
    return dumps([flow])[:-1] + b","


def who_text(who: str) -> str:
    """A word without blanks."""
    return quote(who, safe="@.") or "-"


def gate_rest(gate: Gate) -> str:
    numbers = dumps([gate.kind, gate.rows, gate.table_rows]).decode()
    return f"{gate.up_to_us} {who_text(gate.decided_by)} {numbers}"


def gate_of(field: bytes, text: bytes) -> Gate:
    state, since_us, up_to_us, who, rest = text.decode().split(" ", 4)
    kind, rows, table_rows = loads(rest)
    decided_by = "" if who == "-" else unquote(who)
    flow, topic = loads(field)
    return Gate(flow, topic, kind, state, rows, table_rows, int(since_us), int(up_to_us), decided_by)
