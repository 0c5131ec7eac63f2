"""`tailrace run`: everything of the config file, kept running, on one screen."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import uvloop
from rich.console import Console
from rich.live import Live

from consumers import screens, views
from consumers.comparison import Comparisons
from consumers.control.database import Database
from consumers.first_proofs import FirstProofs, News
from consumers.last_proofs import LastProofs
from consumers.schedule.watch import Watch
from consumers.supervisor import Child, EmbeddedKafka, PartState, Supervisor, only_one
from streamer import logs, metrics
from streamer.changes.topics import status_topic
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of, embedded_folder
from streamer.commands.part import until_stopped
from streamer.config import (
    EMBEDDED,
    Config,
    built_flows,
    is_only_compared,
    load,
    unbuilt_sections,
    unbuilt_source,
)
from streamer.errors import ConfigError, RetryableError, TailraceError
from streamer.status import State, StatusReader, StatusRecord, StatusWriter, now_us
from streamer.stopping import end_tasks, stopped_within

log = logs.Log(__name__)

SCREEN_S = 1.0  # as often as heartbeats come
RETRY_S = 1.0
WATCH_AGAIN_S = 10.0
FIRST_WORD_S = 15.0  # until then a flow that nobody reports is only starting
STOP_DEADLINE_S = 25.0  # children 9 s, then Kafka 8 s, then the heartbeat's last record
LOG_BYTES = 10 * 2**20  # of .tailrace/run.log, beside a screen; begun anew when it is larger


def run(
    path: Path, *, as_json: bool, metrics_port: int, log_format: str, log_level: str, memory: bool = False
) -> None:
    """Until stopped. `log_format` and `log_level` go on to the children; `memory`: processors' state is there
    where RocksDB is not installed."""
    settings = load(path)
    parts = views.expected_parts(settings)
    for refused in refusals(settings):
        log.warning(refused)
    if not any(part.startswith(("capture:", "apply:")) for part in parts):
        raise ConfigError(
            "there is nothing to run: no source and no flow that is built",
            where=str(settings.path),
            fix="add a source, a target and a flow between them",
        )
    folder = settings.base / ".tailrace"
    with only_one(folder, settings.name), ExitStack() as stack:
        console = Console()
        screen = console.is_terminal and not as_json
        if screen:
            file = stack.enter_context(_log_file(folder / "run.log"))
            logs.setup("json" if log_format == "json" else "human", level=log_level, stream=file)
        running = Run(
            settings, parts, as_json=as_json, log_format=log_format, log_level=log_level, memory=memory
        )
        uvloop.run(running.run(metrics_port, console if screen else None))


def command_of(part: str, *, memory: bool = False) -> list[str]:
    """capture:shop -> capture shop; `serve` is of the whole file."""
    kind, _, name = part.partition(":")
    more = ["--yes"] if kind == "process" and memory else []
    return [kind] if kind == "serve" else [kind, name, *more]


def refusals(config: Config) -> list[str]:
    """What of the file does not run, in one sentence each."""
    found = [str(u) for u in unbuilt_sections(config)]
    for source in config.sources.values():
        if not is_only_compared(config, source):
            found += [str(u) for u in unbuilt_source(source)]
    for target in config.targets:
        found += [str(u[0]) for u in built_flows(config, target)[1].values()]
    return found


def _log_file(path: Path) -> TextIO:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.unlink()
    return path.open("a", encoding="utf-8", buffering=1)


async def keep_watch(config: Config, stop: asyncio.Event) -> None:
    """Until `stop`. The parts are kept running, whatever becomes of it."""
    makes_anew = True  # as the start of `run` alone may
    while not stop.is_set():
        try:
            await Watch(config, Database(config, makes_anew=makes_anew)).run(stop)
        except TailraceError as error:
            log.error(f"nothing is watched here: {error}")
            return
        except Exception:
            log.exception("nothing is watched here for a while: please report it with these lines")
            makes_anew = False
            await stopped_within(stop, WATCH_AGAIN_S)


class Run:
    """The supervisor, its heartbeat, and what is shown of both."""

    def __init__(
        self,
        config: Config,
        parts: list[str],
        *,
        as_json: bool,
        log_format: str,
        log_level: str,
        memory: bool = False,
    ) -> None:
        self._config = config
        self._as_json = as_json
        self._raw_lines = log_format == "json"
        self._status: StatusWriter | None = None
        self._stop = asyncio.Event()
        self._began = time.monotonic()
        self._flow_states: dict[str, str] = {}
        common = [
            "-c",
            str(config.path.absolute()),
            "--json",
            f"--log-format={log_format}",
            f"--log-level={log_level}",
            "--metrics-port=0",
        ]
        children = [
            Child(part, [*command, *common], changed=self._part_changed, line=self._line)
            for part, command in ((part, command_of(part, memory=memory)) for part in parts)
        ]
        kafka = None
        if config.kafka.brokers == EMBEDDED:
            kafka = EmbeddedKafka(embedded_folder(config), changed=self._part_changed)
        self._kafka = kafka
        self._supervisor = Supervisor(children, kafka)
        options = [f"--log-format={log_format}", f"--log-level={log_level}"]
        comparisons = Comparisons(config, line=self._line, options=options)
        self._first = FirstProofs(config, compare=comparisons.run, said=self._proof_said)

    async def run(self, metrics_port: int, console: Console | None) -> None:
        await until_stopped(lambda stop: self._until(stop, metrics_port, console), deadline_s=STOP_DEADLINE_S)

    async def _until(self, stop: asyncio.Event, metrics_port: int, console: Console | None) -> None:
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._tell(metrics_port, console), name="heartbeat and screen")

            async def farewell() -> None:
                """The heartbeat's last record, while Kafka is there."""
                await end_tasks(telling)

            tasks.create_task(self._first.keep(stop), name="first proofs")
            if views.is_watched(self._config):
                tasks.create_task(keep_watch(self._config, stop), name="watch")
            await self._supervisor.run(stop, farewell=farewell)
        log.info("stopped")

    async def _tell(self, metrics_port: int, console: Console | None) -> None:
        """Until cancelled. The heartbeat waits for the embedded Kafka, whose address is not known before."""
        with ExitStack() as stack:
            live: Live | None = None
            if console is not None:
                live = stack.enter_context(Live(console=console, auto_refresh=False, screen=True))
            while self._kafka is not None and not self._kafka.ready.is_set():
                self._show(live, [], "Kafka is being started")
                await asyncio.sleep(SCREEN_S / 4)
            config = self._config
            status = StatusWriter(
                brokers_of(config),
                config.kafka.security,
                config.name,
                kind="run",
                part_name=config.name,
                replication_factor=config.kafka.topics.replication_factor,
            )
            self._status = status
            status.update(state=State.RUNNING, detail={**self._detail(), "places": views.places(config)})
            port = stack.enter_context(metrics.serve(metrics_port, lambda: status.record))
            if port is not None:
                status.serves_metrics(port)
            async with status:
                await self._watch(live)

    async def _watch(self, live: Live | None) -> None:
        config = self._config
        topic = status_topic(config.name)
        proofs = LastProofs(config)
        while True:
            try:
                async with StatusReader(brokers_of(config), config.kafka.security, topic) as reader:
                    while True:
                        await reader.poll()
                        self._show(live, reader.records(), "", await proofs.now())
                        await asyncio.sleep(SCREEN_S)
            except RetryableError as error:
                self._show(live, [], str(error))
                await asyncio.sleep(RETRY_S)

    def _show(
        self,
        live: Live | None,
        records: list[StatusRecord],
        trouble: str,
        proofs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """A screen, or what has changed since the last time as log or JSON lines."""
        at_us = now_us()
        found = views.build(self._config, records, at_us, proofs)
        self._first.look(found)
        if trouble:
            found = replace(found, findings=[views.Finding(views.FINDINGS_FROM, "kafka", trouble)], flows=[])
        own = self._supervisor.states()
        found.parts = [_as_part(state, found.parts) for state in own.values()] + _of_others(found.parts, own)
        if live is not None:
            live.update(screens.run_screen(found), refresh=True)
        if not self._stop.is_set():
            for flow in found.flows:
                self._flow_changed(flow)

    def _flow_changed(self, flow: dict[str, Any]) -> None:
        name, state = flow["name"], str(flow["state"])
        if self._flow_states.get(name) == state:
            return
        if name not in self._flow_states and state == views.FlowState.UNKNOWN and self._is_young():
            return  # its processes have only just been started
        self._flow_states[name] = state
        if self._as_json:
            line = {"flow": name, "state": state, "reason": flow["reason"], "at_us": now_us()}
            print_json(line, line=True)
        tell = log.warning if views.is_finding(state) else log.info
        tell(f"flow {name} is {state}", **({"reason": flow["reason"]} if flow["reason"] else {}))

    def _proof_said(self, news: News) -> None:
        if self._as_json:
            print_json({**news.plain(), "at_us": now_us()}, line=True)
        text = {"running": "is compared with its source", "failed": "has no first proof yet"}
        tell = log.warning if news.state in ("drift", "failed") else log.info
        words = text.get(news.state, f"has its first proof: {news.state}")
        about = {name: value for name, value in (("reason", news.reason), ("run", news.run)) if value}
        tell(f"flow {news.flow} {words}", **about)

    def _is_young(self) -> bool:
        return time.monotonic() - self._began < FIRST_WORD_S

    def _part_changed(self, state: PartState) -> None:
        if self._status is not None:
            self._status.update(detail=self._detail())
        if self._as_json:
            print_json({**state.plain(), "at_us": now_us()}, line=True)
        about: dict[str, Any] = {"pid": state.pid} if state.pid else {}
        if state.state in ("backoff", "error"):
            wait_s = max(0.0, ((state.next_try_us or 0) - now_us()) / 1e6)
            again = f"started again in {wait_s:.1f} s"
            log.error(f"{state.part} has ended: {state.reason}", next=again)
        elif state.state == "running" and state.restarts:
            log.warning(f"{state.part} runs again", restarts=state.restarts, **about)
        else:
            log.info(f"{state.part} is {state.state}", **about)

    def _detail(self) -> dict[str, Any]:
        return {"parts": {name: state.plain() for name, state in self._supervisor.states().items()}}

    def _line(self, part: str, text: str) -> None:
        """A line of a child's log goes into ours as it is, with its part before it."""
        logs.stream().write(f"{text}\n" if self._raw_lines else f"{part} | {text}\n")


def _as_part(state: PartState, heartbeats: list[dict[str, Any]]) -> dict[str, Any]:
    """A part as its own heartbeat says, if that is of the present process; else as the supervisor sees it."""
    for heartbeat in heartbeats:
        if heartbeat["pid"] == state.pid and heartbeat["part"] == state.part and state.state == "running":
            return {**heartbeat, "restarts": state.restarts}
    return {
        **state.plain(),
        "instance": f"pid {state.pid}" if state.pid else views.UNKNOWN,
        "age_s": 0.0,
    }


def _of_others(heartbeats: list[dict[str, Any]], own: dict[str, PartState]) -> list[dict[str, Any]]:
    """Live processes of this config that somebody else has started: standbys, other machines."""
    pids = {state.pid for state in own.values()}
    return [
        h
        for h in heartbeats
        if h["pid"] not in pids
        and not h["ended"]
        and not h["part"].startswith("run:")
        and h["state"] != views.SILENT
    ]
