"""The control topic `<out>.__floors`: what concerns tasks other than the one that learns of it. Pure.

{"format":1,"kind":"floor","topic":..,"version":[..],"commit_us":..}     to every partition (H5)
{"format":1,"kind":"retry"|"discard","topic":..,"key":base64,"at_us":..} to the partition of the parked key
{"format":1,"kind":"through","hop":..,"epoch":..,"partition":..}         a task has passed a reset's goals
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Literal, TypeAlias

import orjson

from consumers.processors.change import Floor
from streamer.errors import DecodeError, FatalError

FORMAT = 1
RETRY: Literal["retry"] = "retry"
DISCARD: Literal["discard"] = "discard"


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks of a parked key."""

    action: Literal["retry", "discard"]
    topic: str
    key: bytes
    at_us: int


@dataclass(frozen=True, slots=True)
class Through:
    """Everything before a reset's goals has left hop `hop` of task `partition`: in every partition of the
    next hop's topic, and from the last hop to partition 0 of the control topic."""

    hop: int
    epoch: int
    partition: int


Message: TypeAlias = Floor | Request | Through


def dump(message: Message) -> bytes:
    if isinstance(message, Floor):
        raw: dict[str, object] = {
            "kind": "floor",
            "topic": message.topic,
            "version": message.version,
            "commit_us": message.commit_us,
        }
    elif isinstance(message, Request):
        key = b64encode(message.key).decode()
        raw = {"kind": message.action, "topic": message.topic, "key": key, "at_us": message.at_us}
    else:
        raw = {
            "kind": "through",
            "hop": message.hop,
            "epoch": message.epoch,
            "partition": message.partition,
        }
    return orjson.dumps({"format": FORMAT, **raw})


def load(value: bytes, where: str) -> Message:
    """Raises DecodeError, FatalError for a newer format."""
    try:
        raw = orjson.loads(value)
        if raw["format"] != FORMAT:
            raise FatalError(
                f"the control topic has format {raw['format']}, this program reads {FORMAT}",
                where=where,
                fix="run the version of Tailrace that wrote it, or a newer one",
            )
        kind = raw["kind"]
        if kind == "floor":
            epoch, lsn, ordinal = raw["version"]
            return Floor(raw["topic"], (epoch, lsn, ordinal), raw["commit_us"])
        if kind == "through":
            return Through(raw["hop"], raw["epoch"], raw["partition"])
        if kind in (RETRY, DISCARD):
            return Request(kind, raw["topic"], b64decode(raw["key"]), raw["at_us"])
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"no control message: {error}", offset=0, where=where) from None
    raise DecodeError(f"no control message: kind {kind!r}", offset=0, where=where)
