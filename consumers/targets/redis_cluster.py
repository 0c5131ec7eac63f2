"""The lines to the nodes of a Redis Cluster, and the scripts that go over them.

Owns the client, which knows where slots are and follows them (MOVED, ASK, a failover), and the translation of
what it raises. As on one server a line that has ended ends the session, until `connect`; a slot that is being
moved is waited for by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterError,
    MovedError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from consumers.targets.redis_errors import translate
from consumers.targets.redis_layout import CLUSTER, Arg
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_session import ANSWER_LIMIT_S, CONNECT_LIMIT_S, line_to
from consumers.targets.redis_slots import slot_of
from streamer.errors import ConfigError, TargetUnavailable
from streamer.redis.acl import SELECTORS_SINCE, Rights, major_of
from streamer.redis.address import at, parse_address

AT_ONCE = 1000  # scripts sent before the first answer is read; nodes keep as many answers
_ERRORS = (RedisError, RedisClusterException, OSError)


class Call(NamedTuple):
    script: Script
    keys: Sequence[str]  # all in one slot, one at least
    args: Sequence[Arg]

    def words(self, *, whole: bool = False) -> tuple[Arg, ...]:
        how = ("EVAL", self.script.text) if whole else ("EVALSHA", self.script.sha)
        return (*how, len(self.keys), *self.keys, *self.args)


class ClusterSession:
    """Not for concurrent use."""

    def __init__(self, url: str, place: str, application: str, rights: Rights) -> None:
        self.place = place
        self._rights = rights
        self._major = SELECTORS_SINCE
        self._url = url
        self._application = application.replace(" ", "-")
        self._client: RedisCluster | None = None  # knows the slots, and follows those that move
        self._lines: dict[str, Redis] = {}  # by node; most goes over these, since they cost a third
        self._known: list[tuple[str, int]] = []  # nodes, of the session before: the url's may be down
        self._masters: list[int] = []

    async def connect(self) -> None:
        """Raises TargetUnavailable, ConfigError."""
        await self.close()
        address = parse_address(self._url)
        if address.path is not None or address.db:
            raise ConfigError(
                "a Redis Cluster has database 0 only, and its nodes are reached by host and port",
                where=self.place,
                fix="write redis://user:password@host:port/0, of any of its nodes",
            )
        self._client = RedisCluster.from_url(
            self._url,
            startup_nodes=[ClusterNode(host, port) for host, port in self._known],
            protocol=2,
            client_name=self._application,
            socket_connect_timeout=CONNECT_LIMIT_S,
            socket_timeout=ANSWER_LIMIT_S,
            retry=Retry(NoBackoff(), 0),
            reinitialize_steps=0,  # it would drop its lines without a word
        )
        self._client.set_response_callback("HSCAN", _as_sent)  # as the line to one server gives it
        try:
            await self._client.initialize()
        except _ERRORS as error:
            await self.close()
            raise self._translated(error, opening=True) from error
        self._known = [(node.host, int(node.port)) for node in self._client.get_primaries()]
        self._masters = self._lowest()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
            await client.nodes_manager.aclose()  # after an error the client holds itself for closed
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.aclose()

    def _open(self) -> RedisCluster:
        if self._client is None:
            raise TargetUnavailable(
                "the session with the target has ended", where=self.place, fix="it connects again by itself"
            )
        return self._client

    def _lowest(self) -> list[int]:
        found: dict[str, int] = {}
        for slot, nodes in sorted(self._open().nodes_manager.slots_cache.items()):
            found.setdefault(nodes[0].name, slot)
        return sorted(found.values())

    @property
    def masters(self) -> list[int]:
        """One slot of each."""
        return self._masters

    async def infos(self) -> dict[str, dict[str, Any]]:
        """What each master says of itself, by host and port."""
        found: dict[str, dict[str, Any]] = {}
        try:
            for node in self._open().get_primaries():
                found[node.name] = dict(await (await self._line(node.name)).info())
                self._major = major_of(found[node.name])
        except _ERRORS as error:
            await self.close()
            raise self._translated(error, opening=True) from error
        return found

    async def command(self, *args: Arg, opening: bool = False) -> Any:
        """By its key, the first argument; without one, at the node of the target's own state."""
        key = str(args[1]) if len(args) > 1 else CLUSTER.key("identity")
        return (await self._sent([(slot_of(key), args)], opening=opening))[0]

    async def script(self, script: Script, args: Sequence[Arg], keys: Sequence[str] = (), **how: Any) -> Any:
        return (await self.scripts([Call(script, keys, args)], **how))[0]

    async def scripts(self, calls: Sequence[Call], *, opening: bool = False) -> list[Any]:
        """Each alone in its node, in no order, and not all when it raises."""
        found: list[Any] = []
        for start in range(0, len(calls), AT_ONCE):
            found += await self._some(calls[start : start + AT_ONCE], opening=opening)
        return found

    async def _some(self, calls: Sequence[Call], *, opening: bool) -> list[Any]:
        slots = [slot_of(call.keys[0]) for call in calls]
        asked = [(slot, call.words()) for slot, call in zip(slots, calls, strict=True)]
        replies = await self._sent(asked, opening=opening)
        while unknown := [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
            # Each node learns the text from the first; the others are asked by name again.
            firsts = {(self._node_of(slots[n]), calls[n].script): n for n in unknown}
            for n in firsts.values():
                asked[n] = slots[n], calls[n].words(whole=True)
            taught = sorted(firsts.values())
            for some in (taught, sorted(set(unknown).difference(taught))):
                again = await self._sent([asked[n] for n in some], opening=opening)
                for n, reply in zip(some, again, strict=True):
                    replies[n] = reply
        return replies

    async def _sent(self, asked: Sequence[tuple[int, Sequence[Arg]]], *, opening: bool) -> list[Any]:
        """Commands, each with its slot, to their nodes at the same time. Of the errors only NoScriptError is
        given back."""
        nodes: dict[str, list[int]] = {}
        for n, (slot, _) in enumerate(asked):
            nodes.setdefault(self._node_of(slot), []).append(n)
        replies: list[Any] = [None] * len(asked)

        async def ask(name: str, numbers: list[int]) -> None:
            # Packed by hiredis: the client's own packing costs more than all else that a batch needs.
            packed = [pack_command(tuple(asked[n][1])) for n in numbers]  # type: ignore[arg-type]
            for n, reply in zip(numbers, await self._answers(name, packed), strict=True):
                replies[n] = reply

        try:
            async with asyncio.TaskGroup() as group:
                for name, numbers in nodes.items():
                    group.create_task(ask(name, numbers), name=f"redis node {name}")
        except ExceptionGroup as errors:
            failed = errors.exceptions[0]
        except BaseException:  # cancelled between a question and its answer
            await self.close()
            raise
        else:
            return await self._followed(asked, replies, opening=opening)
        await self.close()
        if isinstance(failed, _ERRORS):
            raise self._translated(failed, opening=opening) from failed
        raise failed

    async def _line(self, name: str) -> Redis:
        line = self._lines.get(name)
        if line is None:
            node = self._open().get_node(node_name=name)
            assert node is not None
            line = self._lines[name] = line_to(at(self._url, node.host, int(node.port)), self._application)
            await line.initialize()
        return line

    async def _answers(self, name: str, packed: list[bytes]) -> list[Any]:
        """Of one node. An answer that is an error stands in its place."""
        connection = (await self._line(name)).connection
        assert connection is not None
        await connection.send_packed_command(packed, check_health=False)
        found: list[Any] = []
        for _ in packed:
            try:
                found.append(await connection.read_response())
            except ResponseError as error:
                found.append(error)
        return found

    async def _followed(
        self, asked: Sequence[tuple[int, Sequence[Arg]]], replies: list[Any], *, opening: bool
    ) -> list[Any]:
        """Slots that are elsewhere by now are asked for there, which the client remembers."""
        moved = []
        for n, reply in enumerate(replies):
            if isinstance(reply, MovedError | AskError):
                moved.append(n)
            elif isinstance(reply, Exception) and not isinstance(reply, NoScriptError):
                raise self._translated(reply, opening=opening) from reply
        for n in moved:
            replies[n] = await self._run(asked[n][1], opening=opening)
        if moved:
            self._masters = self._lowest()
        return replies

    def _node_of(self, slot: int) -> str:
        return str(self._open().nodes_manager.get_node_from_slot(slot).name)

    async def _run(self, args: Sequence[Arg], *, opening: bool) -> Any:
        try:
            return await self._open().execute_command(*args)
        except NoScriptError as error:
            return error
        except _ERRORS as error:
            if not isinstance(error, ResponseError) or isinstance(error, ClusterError):
                await self.close()
            raise self._translated(error, opening=opening) from error
        except BaseException:
            await self.close()
            raise

    def _translated(self, error: Exception, *, opening: bool) -> Exception:
        user = parse_address(self._url).user
        rule = f"{self._rights.rule(user, self._major)}, on each node"
        cause = error.__cause__ if isinstance(error, RedisClusterException) else None
        said = cause if isinstance(cause, RedisError | OSError) else error
        return translate(said, self.place, user, rule=rule, opening=opening)


def _as_sent(response: Any, **_: Any) -> Any:
    return response
