"""What `tailrace doctor` says of processors: the agent, RocksDB, the state folder, and the topics."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson

from consumers.processors import ground, rocks
from consumers.processors.agents import definition_of
from consumers.processors.context import Given
from consumers.processors.hops import hops_of
from consumers.processors.opening import STATE_FOLDER
from streamer.commands.brokers import brokers_of
from streamer.config import EMBEDDED, Config
from streamer.config.derived import upstream
from streamer.doctor import Check
from streamer.doctor.check import Findings
from streamer.errors import ConfigError, KafkaUnavailable, TailraceError

LEAST_FREE_BYTES = 4 * rocks.WRITE_BUFFER_BYTES


async def check_processors(config: Config) -> list[Check]:
    """Changes nothing; the agents' modules are imported."""
    checks: list[Check] = []
    for name in config.processors:
        findings = Findings(f"processor {name}")
        _agent(findings, config, name)
        _state(findings, config, name)
        await _topics(findings, config, name)
        checks += findings.checks
    return checks


def _agent(findings: Findings, config: Config, name: str) -> None:
    processor = config.processors[name]
    try:
        definition = definition_of(processor.agent, folder=config.base, where=f"processors.{name}.agent")
        given = Given(name, processor.inputs, processor.out, processor.key, grows=processor.grows)
        hops = hops_of(definition, given, processor.guarantee, code=processor.agent)
    except TailraceError as error:
        findings.error("agent", error)
        return
    kind = "agent" if type(definition).__name__ == "Agent" else type(definition).__name__.lower()
    trips = f", {len(hops)} hops" if len(hops) > 1 else ""
    findings.ok("agent", f"{processor.agent} is {_a(kind)}{trips}; {processor.guarantee}")


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _state(findings: Findings, config: Config, name: str) -> None:
    if not rocks.available():
        refused = rocks.not_installed(f"processor {name}")
        findings.fail("state", refused.what, refused.fix)
        return
    folder = config.base / STATE_FOLDER / name
    formats = {rocks.FORMAT, *(_format(path) for path in folder.glob("*/FORMAT"))}
    others = sorted(str(found) for found in formats - {rocks.FORMAT})
    if others:
        findings.fail(
            "state",
            f"{folder} has format {', '.join(others)}, this program reads {rocks.FORMAT}",
            "run the version of Tailrace that wrote it; or remove the folder: its state is read again from"
            " Kafka",
        )
    elif why_not := _why_not_writable(folder):
        findings.fail("state", why_not, "give the worker a folder that it may write in, on a disk with room")
    else:
        what = "is there" if folder.exists() else "is made at the first start"
        findings.ok("state", f"RocksDB is installed; {folder} {what}")


def _why_not_writable(folder: Path) -> str:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        return f"{place} is no folder, and {folder} is to be made"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"nothing can be written in {place}"
    free = shutil.disk_usage(place).free
    return f"the disk of {place} has {free:,} bytes left" if free < LEAST_FREE_BYTES else ""


def _format(path: Path) -> object:
    try:
        return orjson.loads(path.read_bytes()).get("format")
    except (OSError, ValueError, AttributeError):
        return "unknown"


async def _topics(findings: Findings, config: Config, name: str) -> None:
    if config.kafka.brokers == EMBEDDED:
        findings.note("topics", "are looked at when it starts, in the Kafka of `tailrace run`")
        return
    try:
        found = await ground.look(config, name, brokers=brokers_of(config))
    except KafkaUnavailable as error:
        before = [each for each in upstream(config.processors, name) if each != name]
        first = f" ({', '.join(before)} makes it)" if before else ""
        findings.note("topics", f"{error.what}{first}", error.fix)
        return
    except ConfigError as error:
        findings.error("topics", error)
        return
    inputs = ", ".join(found.inputs)
    each = "each " if len(found.inputs) > 1 else ""
    findings.ok("topics", f"{inputs}: {each}{found.partitions} partitions, so at most so many workers")
