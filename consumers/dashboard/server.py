"""The dashboard as a part of `tailrace serve`: its socket, its HTTP server, its life.

Of several processes on one machine the one that has the address shows the page; when it ends, another does.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from consumers.control.database import Database
from consumers.dashboard.actions import Commands
from consumers.dashboard.app import Parts, build
from consumers.dashboard.auth import Keys, is_loopback
from consumers.dashboard.watch import Watch
from consumers.heartbeats import Heartbeats
from consumers.schedule.service import Schedule
from consumers.views import Status
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.logs import Log
from streamer.status import StatusRecord
from streamer.stopping import end_tasks

BIND_AGAIN_S = 2.0
CONNECTIONS_LIMIT = 400  # viewers, and what is fetched beside them
SEND_BUFFER_BYTES = 128 * 1024  # of the kernel, a connection: what a viewer that does not read can hold
HEADER_BYTES = 32 * 1024
STOP_S = 2  # what answers are given to end
BACKLOG = 128

log = Log("dashboard")


class Dashboard:
    """`own`: this process's heartbeat; `told`: is given the page's URL once it is open."""

    def __init__(
        self,
        config: Config,
        database: Database,
        heartbeats: Heartbeats,
        schedule: Schedule,
        own: Callable[[], StatusRecord],
        told: Callable[[str], None],
    ) -> None:
        self._config = config
        self._told = told
        self._host, self._port = _address(config)
        keys = Keys(config)
        self._watch = Watch(config, database, heartbeats, own, admin=keys.has_admin)
        self._commands = Commands(config, database)
        self._bound: socket.socket | None = None
        self._parts = Parts(config, self._watch, schedule, self._commands)
        if not is_loopback(self._host) and not keys.has_read:
            log.warning(
                "whoever reaches this address can read the page: set control.keys.read",
                http=config.control.http,
            )

    def open(self) -> None:
        """Raises ConfigError for an address that is none of this machine; one that is taken is waited for."""
        try:
            self._bound = listen(self._host, self._port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"the page cannot be opened on {self._config.control.http}: {error.strerror}",
                    where=f"{self._config.path}: control.http",
                    fix="name an address of this machine and a free port",
                ) from error
            log.warning(
                "another process has the page's address; this one waits for it",
                http=self._config.control.http,
            )

    def status(self) -> Status | None:
        """As the page shows it now; None: no heartbeat was read yet, as in the first second."""
        return self._watch.status() if self._watch.has_read else None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        watching = asyncio.create_task(self._watch.run(), name="dashboard")
        try:
            bound = await self._bind(stop)
            if bound is not None:
                with bound:
                    await self._serve(bound, stop, watching)
        finally:
            await end_tasks(watching)
            await self._commands.close()

    async def _serve(self, bound: socket.socket, stop: asyncio.Event, watching: asyncio.Task[None]) -> None:
        host, port = bound.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        server = Server(settings(build(self._parts, self._host)))
        serving = asyncio.create_task(server.serve([bound]), name="http")
        stopping = asyncio.create_task(stop.wait(), name="stop of http")
        log.info("the page is open", url=url)
        self._told(url)
        try:
            await asyncio.wait({serving, stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            stopping.cancel()
            self._watch.stream.close()
            server.should_exit = True
            await serving

    async def _bind(self, stop: asyncio.Event) -> socket.socket | None:
        """None: it was stopped while another process had the address."""
        while self._bound is None and not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(BIND_AGAIN_S):
                    await stop.wait()
            with suppress(OSError):
                self._bound = listen(self._host, self._port)
        return self._bound


def _address(config: Config) -> tuple[str, int]:
    host, _, port = config.control.http.rpartition(":")
    if int(port) > 65535:
        raise ConfigError(
            f"{port} is no port", where=f"{config.path}: control.http", fix="write host:port, 0 to 65535"
        )
    return host.strip("[]"), int(port)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # its connections have it, too
    bound.setblocking(False)
    return bound


def settings(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )


class _Protocol(H11Protocol):
    """Lets an application drop its connection (`scope["state"]["abort"]`), as for one that does not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "abort": transport.abort}
        super().connection_made(transport)


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the part's own, which tells this server."""
        yield
