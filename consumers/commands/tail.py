"""`tailrace tail`: records of a topic as lines for people, as JSON, or as they are."""

from __future__ import annotations

import shutil
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import uvloop

from consumers.bounds import parse_bound
from consumers.commands.backfill_tables import read_records
from consumers.key_file import Written, key_columns, key_of
from consumers.keys import WantedKey
from consumers.replay import records_of
from consumers.tail import Record, Wanted, tail
from streamer.changes.envelope import POSTGRES
from streamer.changes.lsn import format_lsn
from streamer.changes.topics import clean
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import Config, load
from streamer.errors import EXIT_OK, ConfigError

FORMATS = ("line", "json", "raw")
NARROWEST = 40  # columns that a line is never shortened below


def show(
    path: Path,
    topic: str,
    *,
    key: str,
    from_: str,
    to: str,
    number: int | None,
    partition: int | None,
    follow: bool,
    format_: str,
) -> int:
    """The exit code. Ctrl-C is how `follow` ends."""
    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r} is not known", fix=f"write {', '.join(FORMATS)}")
    now_ms = time.time_ns() // 1_000_000
    wanted = Wanted(
        topic,
        None,
        parse_bound(from_, "--from", now_ms) if from_ else None,
        parse_bound(to, "--to", now_ms) if to else None,
        number,
        partition,
        follow,
    )
    config = load(path)
    try:
        uvloop.run(_show(config, brokers_of(config), wanted, key, format_))
    except KeyboardInterrupt:
        if not follow:
            raise
    return EXIT_OK


async def _show(config: Config, brokers: str, wanted: Wanted, key: str, format_: str) -> None:
    write = _writer(format_)
    if key:
        wanted = replace(wanted, key=WantedKey(await _written(config, brokers, wanted.topic, key)))
    async with aclosing(tail(brokers, config.kafka.security, config.name, wanted)) as records:
        async for record in records:
            write(record)


async def _written(config: Config, brokers: str, topic: str, key: str) -> str:
    """The key as the topic's events have it; as it is where the topic is of no table. Raises ConfigError."""
    for source in (*config.sources, *(processor.out for processor in config.processors.values())):
        of_it = topic == source or topic.startswith(f"{clean(source)}.")
        records = await read_records(config, brokers, source) if of_it else {}
        for record in records_of(records.values(), [topic]).values():
            columns = key_columns(record)
            if columns:
                values = key_of(Written("-k", key), columns)
                return orjson.dumps(dict(zip([c.name for c in columns], values, strict=True))).decode()
    return key


def _writer(format_: str) -> Callable[[Record], None]:
    if format_ == "json":
        return lambda record: print_json(plain(record), line=True)
    out = sys.stdout
    if format_ == "raw":

        def raw(record: Record) -> None:
            out.buffer.write((record.value or b"") + b"\n")
            out.buffer.flush()

        return raw
    width = max(NARROWEST, shutil.get_terminal_size().columns) if out.isatty() else 0

    def line(record: Record) -> None:
        out.write(line_of(record, width) + "\n")
        out.flush()

    return line


def plain(record: Record) -> dict[str, Any]:
    """For programs. A key or value that is no JSON: its bytes in base64, under another name."""
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "headers": {name: value.decode(errors="replace") for name, value in record.headers},
        **_part("key", record.key),
        **_part("value", record.value),
    }


def _part(name: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {name: None}
    try:
        return {name: orjson.loads(content)}
    except ValueError:
        return {f"{name}_base64": b64encode(content).decode()}


# Lines


def line_of(record: Record, width: int) -> str:
    """Publish time, partition@offset, and what it is; shortened to `width` columns, 0: not at all."""
    at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    head = f"{at:%Y-%m-%d %H:%M:%S}.{record.timestamp % 1000:03d}  [{record.partition}]@{record.offset}"
    text = f"{head}  {_what(record)}"
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if not width or len(text) <= width else text[: width - 1] + "…"


def _what(record: Record) -> str:
    key = _text(record.key)
    if record.value is None:
        return f"-  {key}  tombstone"
    try:
        value = orjson.loads(record.value)
    except ValueError:
        return f"?  {key}  no JSON: {record.value[:200].decode(errors='replace')}"
    source = value.get("source") if isinstance(value, dict) else None
    if not isinstance(source, dict) or "op" not in value:
        return f"{key}  {_text(record.value)}"
    return f"{value['op']}  {key}  {_version(source, record.offset)}  {_change(value, source)}"


def _text(content: bytes | None) -> str:
    """JSON without its outer braces and quotes where people do not miss them."""
    if content is None:
        return "-"
    try:
        found = orjson.loads(content)
    except ValueError:
        return content.decode(errors="replace")
    return _pairs(found) if isinstance(found, dict) else orjson.dumps(found).decode()


def _pairs(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in row.items()) or "{}"


def _value(value: Any) -> str:
    plain_text = isinstance(value, str) and value and not set(value) & set(" =\"'{}[],")
    return value if plain_text else orjson.dumps(value).decode()


def _version(source: dict[str, Any], offset: int) -> str:
    """epoch:LSN.ordinal; a source without LSNs has microseconds there, a processor the record's offset."""
    if source.get("commit_lsn") is None:
        return f"{source.get('epoch')}:@{offset}"
    lsn, ordinal, epoch = source.get("commit_lsn"), source.get("ordinal"), source.get("epoch")
    if isinstance(lsn, int) and source.get("connector") == POSTGRES:
        return f"{epoch}:{format_lsn(lsn)}.{ordinal}"
    return f"{epoch}:{lsn}.{ordinal}"


def _change(value: dict[str, Any], source: dict[str, Any]) -> str:
    op, before, after = value["op"], value.get("before"), value.get("after")
    if op == "t":
        return "truncate"
    if op == "m":
        message = value.get("message")
        return f"message {message.get('prefix') if isinstance(message, dict) else ''}"
    if op == "d":
        gone = {name: old for name, old in (before or {}).items() if old is not None}
        return f"was {_pairs(gone)}"
    if isinstance(before, dict) and isinstance(after, dict):
        changed = {name: new for name, new in after.items() if before.get(name) != new}
        if changed:
            return _pairs(changed)
    backfilled = "backfill " if source.get("snapshot") == "incremental" else ""
    return backfilled + (_pairs(after) if isinstance(after, dict) else "")
