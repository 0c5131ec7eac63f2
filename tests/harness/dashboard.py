"""The dashboard's application on a real port, over a real control database, without Kafka.

Owns the server and its parts; what a viewer or a client does is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import yaml

from consumers.control.database import Database
from consumers.dashboard.actions import Commands
from consumers.dashboard.app import Parts, build
from consumers.dashboard.auth import Keys
from consumers.dashboard.server import Server, listen, settings
from consumers.dashboard.watch import Watch
from consumers.heartbeats import Heartbeats
from consumers.schedule.service import Schedule
from streamer.config import Config, load
from streamer.status import StatusRecord, now_us

ADMIN = "a-long-admin-key"
HOST = "127.0.0.1"


def config_of(folder: Path, **control: object) -> Config:
    """Two flows, a job, and these keys of `control`."""
    path = folder / "tailrace.yaml"
    shop = {"kind": "postgres", "url": "postgresql://u:hunter2@127.0.0.1:1/shop", "tables": {"public.*": {}}}
    text = {
        "name": "acme",
        "kafka": {"brokers": "127.0.0.1:1"},
        "control": {"http": f"{HOST}:0", **control},
        "sources": {"shop": shop},
        "targets": {"copy": {"kind": "postgres", "url": "postgresql://u:hunter2@127.0.0.1:1/copy"}},
        "flows": {
            "mirror": {"from": "shop.public.*", "to": "copy.mirror"},
            "people": {"from": "shop.public.people", "to": "copy.people"},
        },
        "reconcile": {"audit": {"flow": "mirror"}},
        "schedules": {"jobs": {"audit": {"reconcile": "audit", "at": ["02:00"]}}},
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return load(path, environ={})


def beat(part: str, **changes: object) -> StatusRecord:
    """A heartbeat of now."""
    kind, _, name = part.partition(":")
    at_us = now_us()
    fields: dict[str, object] = {
        "part": part,
        "kind": kind,
        "name": name,
        "instance": "host-1",
        "pid": 1,
        "host": "host",
        "started_us": at_us,
        "at_us": at_us,
        "seen_us": at_us,
        "state": "running",
    }
    return StatusRecord(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass(slots=True)
class Served:
    parts: Parts
    port: int
    http: httpx2.AsyncClient

    @property
    def watch(self) -> Watch:
        return self.parts.watch

    async def post(self, path: str, body: object = None, key: str = ADMIN) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.http.post(path, json={} if body is None else body, headers=headers)


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Served]:
    database = Database(config)
    schedule, commands = Schedule(config, database), Commands(config, database)
    schedule.open()
    watch = Watch(
        config, database, Heartbeats(config), lambda: beat("serve:acme"), admin=Keys(config).has_admin
    )
    parts = Parts(config, watch, schedule, commands)
    with listen(HOST, 0) as bound:
        port = bound.getsockname()[1]
        server = Server(settings(build(parts, HOST)))
        task = asyncio.create_task(server.serve([bound]))
        try:
            async with httpx2.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=60) as http:
                yield Served(parts, port, http)
        finally:
            watch.stream.close()
            await commands.close()
            server.should_exit = True
            await task
