"""Where the server of a Redis source is, when Redis Sentinel says so.

Owns the form of such a URL and the question to the Sentinels. Connects to no server that holds data.

    redis+sentinel://[user:password@]host[:port][,host[:port]...]/NAME[/db][?option=value...]

`rediss+sentinel://` for TLS, to the Sentinels too. NAME is that of `sentinel monitor NAME ...`; the login is
the server's. Options beside those of a plain URL: `role` (primary or replica), `sentinel_user` and
`sentinel_password`. Sentinel's commands: https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from hiredis import ProtocolError, Reader, ReplyError, pack_command

from streamer.errors import ConfigError, SourceUnavailable
from streamer.redis.address import DEFAULT_USER, OPTIONS, Address, parse_address
from streamer.redis.replies import Command

SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379
ROLES = {"primary": "master", "replica": "replica"}  # as a server's HELLO says it
ANSWER_LIMIT_S = 2.0  # one that is away must not hold up the others' word
FOLLOW_EVERY_S = 1.0  # a primary that was replaced, and that still answers, is left within it
_OWN_OPTIONS = ("role", "sentinel_user", "sentinel_password")
_FIX = "write redis+sentinel://user:password@host:26379,host:26379/NAME/0"
_ESCAPED = "write %23 for #, %2F for / and %40 for @ in a user or password"
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
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        return None
    if parts.fragment or "#" in url or ("@" in parts.path and "@" not in parts.netloc):
        # Nothing of it is shown: what stands before the sign is the login.
        raise ConfigError(
            "the url of the Sentinels cannot be read: a # or / of the login cuts it", fix=_ESCAPED
        )
    login, mark, hosts = parts.netloc.rpartition("@")
    name, _, database = parts.path.removeprefix("/").partition("/")
    if not name:
        raise ConfigError("the url names Sentinels, and no NAME that they watch", where=hosts, fix=_FIX)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    role = options.get("role", "primary")
    if role not in ROLES:
        raise ConfigError(f"role={role} in the url", where=hosts, fix="write role=primary or role=replica")
    query = urlencode({key: value for key, value in options.items() if key not in _OWN_OPTIONS})
    scheme = SCHEMES[parts.scheme]
    plain = f"{scheme}://{login}{mark}sentinel/{database}" + (f"?{query}" if query else "")
    try:
        server = replace(parse_address(plain), role=ROLES[role])
    except ConfigError as error:
        fix = f"{_FIX}; options are {', '.join((*_OWN_OPTIONS, *OPTIONS))}"
        raise ConfigError(error.what, where=hosts, fix=fix) from error
    user, password = options.get("sentinel_user", DEFAULT_USER), options.get("sentinel_password")
    asked = []
    for text in hosts.split(","):
        host, port = _host(text, hosts)
        asked.append(Address(host, port, None, 0, user, password, server.tls))
    return Sentinels(unquote(name), server, tuple(asked))


def _host(text: str, where: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise ConfigError(f"{text!r} is no Sentinel's host and port", where=where, fix=_FIX)
    return host, port or SENTINEL_PORT


async def locate(url: str) -> Address:
    """The server of a URL of either form. Raises SourceUnavailable, ConfigError."""
    sentinels = parse_sentinels(url)
    return parse_address(url) if sentinels is None else await sentinels.locate()


async def follow(url: str, server: Address) -> None:
    """As Sentinels.follow; of a URL that names the server itself nothing has to be followed."""
    sentinels = parse_sentinels(url)
    if sentinels is not None:
        await sentinels.follow(server)
