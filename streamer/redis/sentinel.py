"""Where the server of a Redis source is, when Redis Sentinel says so.

Owns the question to the Sentinels. Connects to no server that holds data. The login of their URL
(streamer.redis.url) is the server's; theirs are its options `sentinel_user` and `sentinel_password`.
Sentinel's commands: https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hiredis import ProtocolError, Reader, ReplyError, pack_command

from streamer.errors import ConfigError, SourceUnavailable
from streamer.redis.address import Address, address_of, parse_address, url_of
from streamer.redis.replies import Command
from streamer.redis.url import SentinelUrl

ANSWER_LIMIT_S = 2.0  # one that is away must not hold up the others' word
FOLLOW_EVERY_S = 1.0  # a primary that was replaced, and that still answers, is left within it
_FIX = "write redis+sentinel://user:password@host:26379,host:26379/NAME/0"
_DOWN = ("s_down", "o_down", "disconnected")  # flags of one that a Sentinel does not reach


@dataclass(frozen=True, slots=True)
class Sentinels:
    """`server`: all that is known of the server but its host and port; `asked`: the Sentinels' addresses."""

    name: str
    server: Address
    asked: tuple[Address, ...]

    @property
    def where(self) -> str:
        return f"{self.name} at Sentinel {', '.join(f'{a.host}:{a.port}' for a in self.asked)}"

    async def locate(self) -> Address:
        """The server as most recently told. Raises SourceUnavailable, ConfigError."""
        return (await self._servers())[0]

    async def follow(self, server: Address) -> None:
        """Until it is another's turn, which is raised as SourceUnavailable. Without a Sentinel that answers
        nothing is known, and the server's own line says how it is."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            try:
                found = await self._servers()
            except (SourceUnavailable, ConfigError):
                continue
            if server not in found:
                raise SourceUnavailable(
                    f"{server} is no {self.server.role_word} of {self.name} any more: it is {found[0]}",
                    where=self.where,
                    fix="nothing: it goes on there, and all is read again",
                )

    async def _servers(self) -> list[Address]:
        """Those that will do, the best first."""
        replies = await asyncio.gather(*(self._ask(one) for one in self.asked), return_exceptions=True)
        told = [reply for reply in replies if isinstance(reply, _Told)]
        if not told:
            raise self._silence([reply for reply in replies if isinstance(reply, BaseException)])
        # The one that knows of the latest failover; a Sentinel that was cut off names the primary before it.
        latest = max(told, key=lambda each: each.epoch)
        places = [latest.primary] if self.server.role == "master" else latest.replicas
        if not places:
            raise SourceUnavailable(
                f"Sentinel knows no replica of {self.name} that is well",
                where=self.where,
                fix="mend one, or follow the primary (`role=primary` in the url); it goes on by itself",
            )
        return [replace(self.server, host=host, port=port) for host, port in places]

    def _silence(self, errors: Sequence[BaseException]) -> Exception:
        """A person must act only where every Sentinel says so."""
        for error in errors:
            if not isinstance(error, SourceUnavailable | ConfigError):
                raise error
        away = [error for error in errors if isinstance(error, SourceUnavailable)]
        if not away:
            assert isinstance(errors[0], ConfigError)
            return errors[0]
        return SourceUnavailable(
            f"no Sentinel answers: {'; '.join(error.what for error in away)}",
            where=self.where,
            fix="check that the Sentinels run and can be reached from here",
        )

    async def _ask(self, one: Address) -> _Told:
        commands: list[Command] = [
            ("SENTINEL", "MASTER", self.name),
            ("SENTINEL", "REPLICAS", self.name),
        ]
        if one.password is not None:
            commands.insert(0, ("AUTH", one.user, one.password))
        replies = await _exchange(one, commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._refused(one, str(reply))
        primary, replicas = replies[-2:]
        return _told(_fields(primary), [_fields(replica) for replica in replicas])

    def _refused(self, one: Address, text: str) -> ConfigError | SourceUnavailable:
        what = f"Sentinel {one.host}:{one.port} says: {text}"
        if "No such master" in text:
            return ConfigError(
                what, where=self.where, fix="correct NAME in the url: SENTINEL MASTERS has them"
            )
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH")):
            fix = "name its login in the url: ?sentinel_user=..&sentinel_password=.."
            return ConfigError(what, where=self.where, fix=fix)
        if "unknown command" in text:
            return ConfigError(what, where=self.where, fix=f"this is no Sentinel: {_FIX}")
        return SourceUnavailable(what, where=self.where, fix="see the Sentinel's log; it is asked again")


@dataclass(frozen=True, slots=True)
class _Told:
    """What one Sentinel knows. `epoch`: of the last failover."""

    epoch: int
    primary: tuple[str, int]
    replicas: list[tuple[str, int]]  # that are well


def _told(primary: dict[str, str], replicas: list[dict[str, str]]) -> _Told:
    well = [
        (each["ip"], int(each["port"]))
        for each in replicas
        if not set(each["flags"].split(",")) & set(_DOWN) and each.get("master-link-status") == "ok"
    ]
    return _Told(int(primary["config-epoch"]), (primary["ip"], int(primary["port"])), sorted(well))


def _fields(flat: Any) -> dict[str, str]:
    texts = [part.decode("utf-8", "replace") for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


async def _exchange(one: Address, commands: Sequence[Command]) -> list[Any]:
    """Replies of one Sentinel, errors among them. Raises SourceUnavailable."""
    where = f"{one.host}:{one.port}"
    replies: list[Any] = []
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            reader, writer = await asyncio.open_connection(one.host, one.port, ssl=one.tls)
            try:
                for command in commands:
                    writer.write(pack_command(tuple(command)))  # type: ignore[arg-type]
                parser = Reader()
                while len(replies) < len(commands):
                    data = await reader.read(65536)
                    if not data:
                        raise ConnectionResetError("it closed the line")
                    parser.feed(data)
                    while len(replies) < len(commands) and (reply := parser.gets()) is not False:
                        replies.append(reply)
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise SourceUnavailable(f"{where} has not answered within {ANSWER_LIMIT_S:.0f} s") from error
    except (OSError, ProtocolError) as error:
        raise SourceUnavailable(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    return replies


def parse_sentinels(url: str) -> Sentinels | None:
    """None: the URL names a server itself. Raises ConfigError."""
    found = url_of(url)
    if not isinstance(found, SentinelUrl):
        return None
    server = replace(address_of(found.server), role=found.role)
    user, password, tls = found.user, found.password, server.tls
    asked = [Address(host, port, None, 0, user, password, tls) for host, port in found.hosts]
    return Sentinels(found.name, server, tuple(asked))


async def locate(url: str) -> Address:
    """The server of a URL of either form. Raises SourceUnavailable, ConfigError."""
    sentinels = parse_sentinels(url)
    return parse_address(url) if sentinels is None else await sentinels.locate()


async def follow(url: str, server: Address) -> None:
    """As Sentinels.follow; of a URL that names the server itself nothing has to be followed."""
    sentinels = parse_sentinels(url)
    if sentinels is not None:
        await sentinels.follow(server)
