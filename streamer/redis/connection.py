"""A connection to a Redis server: RESP3 over one socket, parsed by hiredis.

Owns the line: who waits for which reply, where pushes go, how its end is told. Never connects again by
itself: a silent new subscription would hide lost events. One line for the subscription, one for commands;
that a source has one server is known here and in `address` only.

Replies come in the order of the commands; a push (`>`) may come between any two of them
(https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from hiredis import ProtocolError, PushNotification, Reader, ReplyError, pack_command

from streamer.errors import ConfigError, SourceUnavailable, TailraceError
from streamer.redis.acl import SELECTORS_SINCE, Rights
from streamer.redis.address import Address
from streamer.redis.replies import CLUSTER_FIX, Arg, Command, translate
from streamer.redis.sentinel import locate

Reply = Any  # bytes, int, float, None, bool, list, dict, set or ReplyError, as RESP3 has them
OnPush = Callable[[list[Any]], None]

CONNECT_LIMIT_S = 10.0
# No step of ours blocks a server for so long: a line that owes a reply since then is dead.
ANSWER_LIMIT_S = 30.0
# A peer that vanished without a FIN is noticed after idle + interval * count seconds.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 10, 5, 3
CLIENT_NAME = "tailrace"

_NOTHING = object()  # no whole reply yet; False is a reply of RESP3


Asked = asyncio.Future[list[Reply]]


def _retrieve(asked: Asked) -> None:
    """An answer that nobody waits for any more may be an error: not worth a warning."""
    if not asked.cancelled():
        asked.exception()


def _ignore(_push: list[Any]) -> None:
    """Pushes of a line on which nobody asked for any."""


@asynccontextmanager
async def connect(
    server: str | Address,
    *,
    on_push: OnPush = _ignore,
    application: str = CLIENT_NAME,
    rights: Rights | None = None,
    cluster: bool = False,
) -> AsyncIterator[RedisConnection]:
    """A line to the server, by its URL or address, logged in, its database selected; closed at the end.

    `on_push` is called in the reader for each push, before the replies behind it: it must not block.
    `rights`: all that the user needs for what the line is for, which the error for one that lacks is to say.
    `cluster`: the caller knows what to do with a node of a Redis Cluster.
    Raises SourceUnavailable, or ConfigError for a wrong password, a Cluster, a Sentinel, an old server.
    """
    address = server if isinstance(server, Address) else await locate(server)
    connection = await _open(address, on_push)
    connection.rights = rights
    try:
        await connection.hello(application, cluster=cluster)
        yield connection
    finally:
        await connection.close()


async def _open(address: Address, on_push: OnPush) -> RedisConnection:
    loop = asyncio.get_running_loop()

    def protocol() -> RedisConnection:
        return RedisConnection(address, on_push, loop)

    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            if address.path is not None:
                _, connection = await loop.create_unix_connection(protocol, address.path)
            else:
                _, connection = await loop.create_connection(
                    protocol, address.host, address.port, ssl=address.tls
                )
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"the server's certificate is not trusted: {error.verify_message}",
            where=str(address),
            fix="name the authority by ?ssl_ca_certs=FILE in the url",
        ) from error
    except TimeoutError as error:
        raise SourceUnavailable(
            f"no connection within {CONNECT_LIMIT_S:.0f} s",
            where=str(address),
            fix="check host and port, and that nothing between drops the packets",
        ) from error
    except OSError as error:
        raise SourceUnavailable(
            f"no connection: {error.strerror or error}",
            where=str(address),
            fix="check that the server runs and can be reached from here"
            + ("" if address.tls else " (a server with TLS wants rediss://)"),
        ) from error
    return connection


class _Waiting:
    """Who waits for the next `count` replies."""

    __slots__ = ("count", "done", "replies")

    def __init__(self, count: int, done: Asked) -> None:
        self.count = count
        self.done = done
        self.replies: list[Reply] = []


class RedisConnection(asyncio.Protocol):
    """One line. Made by `connect`; several tasks may use it, each call's commands stay together."""

    def __init__(self, address: Address, on_push: OnPush, loop: asyncio.AbstractEventLoop) -> None:
        self.where = str(address)
        self.user = address.user
        self.db = address.db
        self.server: dict[str, str] = {}  # HELLO's reply: server, version, mode, role
        self.on_push = on_push
        self.rights: Rights | None = None
        self._address = address
        self._loop = loop
        self._reader = Reader(replyError=ReplyError, notEnoughData=_NOTHING)
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[str] = loop.create_future()

    # -- what a session uses

    async def command(self, *args: Arg) -> Reply:
        """One command's reply; an error reply is raised, translated."""
        replies = await self.pipeline((args,))
        return replies[0]

    async def pipeline(self, commands: Sequence[Command], *, errors: bool = False) -> list[Reply]:
        """The replies of `commands`, sent in one write; no other task's command comes between them.

        The first error reply is raised, translated; with `errors` each is left in its place as a
        hiredis ReplyError.
        """
        return await self.finish(self.begin(commands), commands, errors=errors)

    def begin(self, commands: Sequence[Command], *, replies: int | None = None) -> Asked:
        """Send commands and go on; `finish` waits for what they say. `replies`: if not one a command.

        Lets the server work on the next step while this one is being looked at.
        """
        asked: Asked = self._loop.create_future()
        asked.add_done_callback(_retrieve)
        if self._ended.done():
            asked.set_exception(self._cut(self._ended.result()))
            return asked
        assert self._transport is not None
        self._waiting.append(_Waiting(len(commands) if replies is None else replies, asked))
        self._transport.write(b"".join([pack_command(tuple(command)) for command in commands]))  # type: ignore[arg-type]
        return asked

    async def finish(self, asked: Asked, commands: Sequence[Command], *, errors: bool = False) -> list[Reply]:
        """The replies to what was begun, as `pipeline` gives them."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                replies = await asked
        except TimeoutError as error:
            self.abort()
            raise SourceUnavailable(
                f"no answer within {ANSWER_LIMIT_S:.0f} s",
                where=self.where,
                fix="see what blocks the server (SLOWLOG GET, its log)",
            ) from error
        if not errors:
            for command, reply in zip(commands, replies, strict=True):
                if isinstance(reply, ReplyError):
                    raise self.translate(reply, command)
        return replies

    async def subscribe(self, *command: Arg) -> None:
        """Send a SUBSCRIBE or PSUBSCRIBE and wait until the server has carried it out.

        Its acknowledgements are pushes; only a refusal is a reply. A PING behind it has the one reply that
        tells both cases apart, so after a refusal the line is of no use any more.
        """
        asked = self.begin((command, ("PING",)), replies=1)
        (reply,) = await self.finish(asked, (command,), errors=True)
        if isinstance(reply, ReplyError):
            self.abort()
            raise self.translate(reply, command)

    async def ended(self) -> SourceUnavailable:
        """Wait for the end of the line; the error to raise then."""
        return self._cut(await asyncio.shield(self._ended))

    @property
    def is_open(self) -> bool:
        return not self._ended.done()

    @property
    def major(self) -> int:
        """Of the server's release; as of one that is current until it has said so."""
        number = self.server.get("version", "").partition(".")[0]
        return int(number) if number.isdigit() else SELECTORS_SINCE

    @property
    def rule(self) -> str:
        """The line that gives the user all its rights; empty when they are not known."""
        return self.rights.rule(self.user, self.major) if self.rights is not None else ""

    def translate(self, error: ReplyError, command: Command) -> TailraceError:
        return translate(error, command, user=self.user, where=self.where, rule=self.rule)

    def abort(self) -> None:
        """End the line now; who waits for a reply is told."""
        if self._transport is not None:
            self._transport.abort()
        self._end("the line was closed by us")

    async def close(self) -> None:
        """End the line; what was asked and not answered fails."""
        self.abort()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    # -- at the start

    async def hello(self, application: str, *, cluster: bool = False) -> None:
        """Log in with RESP3, select the database, and refuse what cannot be captured."""
        address = self._address
        hello: list[Arg] = ["HELLO", 3]
        if address.password is not None:
            hello += ["AUTH", address.user, address.password]
        reply = await self.command(*hello)
        self.server = {_text(key): _text(value) for key, value in reply.items() if key != b"modules"}
        mode = self.server.get("mode")
        if mode == "cluster" and not cluster:
            raise ConfigError("the server is a node of a Redis Cluster", where=self.where, fix=CLUSTER_FIX)
        if mode == "sentinel":
            raise ConfigError(
                "this is a Sentinel, which holds no data",
                where=self.where,
                fix="write redis+sentinel://user:password@host:26379/NAME/0 to follow the primary that it"
                " watches, or name a server itself",
            )
        if address.role and self.server.get("role") != address.role:
            raise SourceUnavailable(
                f"the server is no {address.role_word}, as Sentinel says: it is {self.server.get('role')}",
                where=self.where,
                fix="nothing: the Sentinels are asked again",
            )
        await self.command("SELECT", self.db)
        # A name is for CLIENT LIST only: a user without the right to set it loses nothing else.
        await self.pipeline([("CLIENT", "SETNAME", application.replace(" ", "-"))], errors=True)

    # -- the line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of it
        line = transport.get_extra_info("socket")
        if line is not None and self._address.path is None:
            _keep_alive(line)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        on_push = self.on_push
        try:
            reader.feed(data)
            gets = reader.gets
            while (reply := gets()) is not _NOTHING:
                if type(reply) is PushNotification:
                    on_push(reply)
                else:
                    self._answer(reply)
        except ProtocolError as error:
            self._end(f"what came is not RESP3 ({error})")
            assert self._transport is not None
            self._transport.abort()

    def _answer(self, reply: Reply) -> None:
        waiting = self._waiting
        if not waiting:
            # A server says a last word before it closes: -ERR max number of clients reached.
            self._end(
                f"the server said {reply}" if isinstance(reply, ReplyError) else "a reply nobody asked for"
            )
            return
        first = waiting[0]
        first.replies.append(reply)
        if len(first.replies) == first.count:
            waiting.popleft()
            if not first.done.done():
                first.done.set_result(first.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the line was cut: {exc}" if exc else "the server closed the line")

    def _end(self, reason: str) -> None:
        if self._ended.done():
            return
        self._ended.set_result(reason)
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done.done():
                waiting.done.set_exception(self._cut(reason))

    def _cut(self, reason: str) -> SourceUnavailable:
        fix = "check that the server runs and can be reached from here"
        return SourceUnavailable(reason, where=self.where, fix=fix)


def _keep_alive(line: socket.socket) -> None:
    with suppress(OSError):  # a platform without one of these finds a dead peer by the canary
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
            ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ):
            if (option := getattr(socket, name, None)) is not None:
                line.setsockopt(socket.IPPROTO_TCP, option, value)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
