"""The lines to a Redis target: to its one server, or to each master of a Redis Cluster. They read only.

Owns which node has a key, and follows slots that have moved. Errors are those of a target.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple

from hiredis import ReplyError

from consumers.targets.redis_slots import slot_of
from streamer.errors import SourceUnavailable, TargetUnavailable
from streamer.redis.acl import Rights
from streamer.redis.address import at, parse_address
from streamer.redis.connection import RedisConnection, connect
from streamer.redis.replies import Command, code

APPLICATION = "tailrace-reconcile"
AT_ONCE = 500  # commands of one pipeline: some milliseconds of the server, others are served in between
MOVES_LIMIT = 5  # of one key, from node to node, until it is given up


class Asked(NamedTuple):
    key: str
    command: Command


@contextmanager
def of_target() -> Iterator[None]:
    """Errors of a line are of the source's kind."""
    try:
        yield
    except SourceUnavailable as error:
        raise TargetUnavailable(error.what, where=error.where, fix=error.fix) from error


class Nodes:
    """`in_cluster` once it is open."""

    def __init__(self, url: str, rights: Rights) -> None:
        self._url = url
        self._rights = rights
        self._stack = AsyncExitStack()
        self._lines: dict[str, RedisConnection] = {}  # by host:port; one server has the name ""
        self._slots: list[tuple[int, int, str]] = []  # first, last, node
        self.in_cluster = False
        self.db = 0
        self.place = ""

    async def open(self) -> None:
        """Raises TargetUnavailable, ConfigError."""
        address = parse_address(self._url)
        self.db, self.place = address.db, str(address)
        first = await self._line("", self._url)
        self.in_cluster = first.server.get("mode") == "cluster"
        if self.in_cluster:
            await self._look(first)

    async def close(self) -> None:
        self._lines.clear()
        await self._stack.aclose()

    async def _line(self, name: str, url: str) -> RedisConnection:
        line = self._lines.get(name)
        if line is None:
            entered = connect(url, application=APPLICATION, rights=self._rights, cluster=True)
            with of_target():
                line = self._lines[name] = await self._stack.enter_async_context(entered)
        return line

    async def _look(self, line: RedisConnection) -> None:
        """Which master has which slots, as this node knows it."""
        with of_target():
            found = await line.command("CLUSTER", "SLOTS")
        self._slots = [(first, last, self._name(*master[:2])) for first, last, master, *_ in found]

    def _name(self, host: bytes | None, port: int) -> str:
        """A node that does not know its own host is where the URL leads."""
        known = (host or b"").decode() or str(parse_address(self._url).host)
        return f"{known}:{port}"

    async def masters(self) -> list[RedisConnection]:
        if not self.in_cluster:
            return [self._lines[""]]
        await self._look(self._lines[""])
        return [await self._at(name) for name in dict.fromkeys(name for _, _, name in self._slots)]

    async def _at(self, name: str) -> RedisConnection:
        host, _, port = name.rpartition(":")
        return await self._line(name, at(self._url, host, int(port)))

    async def line_of(self, key: str) -> RedisConnection:
        if not self.in_cluster:
            return self._lines[""]
        slot = slot_of(key)
        for first, last, name in self._slots:
            if first <= slot <= last:
                return await self._at(name)
        raise TargetUnavailable(
            f"no node of the cluster has slot {slot}", where=self.place, fix="see CLUSTER INFO"
        )

    async def ask(self, asked: Sequence[Asked]) -> list[Any]:
        """The reply to each, where its key is; an error reply stands in its place."""
        replies: list[Any] = [None] * len(asked)
        by_line: dict[int, tuple[RedisConnection, list[int]]] = {}
        for number, each in enumerate(asked):
            line = await self.line_of(each.key)
            by_line.setdefault(id(line), (line, []))[1].append(number)
        for line, numbers in by_line.values():
            for start in range(0, len(numbers), AT_ONCE):
                some = numbers[start : start + AT_ONCE]
                found = await self.on(line, [asked[n].command for n in some])
                for number, reply in zip(some, found, strict=True):
                    replies[number] = await self._followed(asked[number].command, reply)
        return replies

    async def on(self, line: RedisConnection, commands: Sequence[Command]) -> list[Any]:
        """Replies of one node, errors in their places; one that a person must mend is raised."""
        with of_target():
            _, *replies = await line.pipeline([("SELECT", self.db), *commands], errors=True)
            for command, reply in zip(commands, replies, strict=True):
                if isinstance(reply, ReplyError) and code(reply) not in ("MOVED", "ASK", "WRONGTYPE"):
                    raise line.translate(reply, command)
        return replies

    async def _followed(self, command: Command, reply: Any) -> Any:
        for _ in range(MOVES_LIMIT):
            if not isinstance(reply, ReplyError) or code(reply) == "WRONGTYPE":
                return reply
            _, _, name = str(reply).split()
            line = await self._at(
                name if not name.startswith(":") else f"{parse_address(self._url).host}{name}"
            )
            words: list[Command] = [("ASKING",), command] if code(reply) == "ASK" else [command]
            reply = (await self.on(line, words))[-1]
        raise TargetUnavailable(
            f"a slot of the cluster moves from node to node: {reply}",
            where=self.place,
            fix="see CLUSTER NODES",
        )

    async def walk(self, glob: bytes) -> AsyncGenerator[tuple[RedisConnection, list[bytes]], None]:
        """Keys that match, node by node. One whose slot moves meanwhile may be missed, or come twice."""
        for line in await self.masters():
            cursor = b"0"
            while True:
                command: Command = ("SCAN", cursor, "MATCH", glob, "COUNT", 1000)
                ((cursor, keys),) = await self.on(line, [command])
                if keys:
                    yield line, keys
                if cursor == b"0":
                    break
