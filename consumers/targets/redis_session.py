"""One line to a Redis target, and the scripts that go over it.

Owns the client (of the `redis` package) and the translation of what it raises. A line that has ended stays so
until `connect`: an open session is one server that was looked at, never another one by a silent reconnect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from consumers.targets.redis_errors import translate
from consumers.targets.redis_layout import Arg
from consumers.targets.redis_scripts import Script
from streamer.errors import TargetUnavailable
from streamer.redis.acl import SELECTORS_SINCE, Rights, major_of
from streamer.redis.address import Address, parse_address

CONNECT_LIMIT_S = 10.0
ANSWER_LIMIT_S = 30.0  # no script of ours takes a second


def line_to(url: str, application: str) -> Redis:
    """A client with one line, not connected, that tries nothing twice."""
    return Redis.from_url(
        url,
        protocol=2,
        client_name=application,
        single_connection_client=True,
        socket_connect_timeout=CONNECT_LIMIT_S,
        socket_timeout=ANSWER_LIMIT_S,
        retry=Retry(NoBackoff(), 0),
        **({"socket_keepalive": True} if parse_address(url).path is None else {}),
    )


class RedisSession:
    """Not for concurrent use."""

    def __init__(self, url: str, place: str, application: str, rights: Rights) -> None:
        """`rights`: what the error for a user who lacks one of them is to ask for."""
        self.place = place
        self._rights = rights
        self._major = SELECTORS_SINCE  # of the server's release, until it has said it
        self._url = url
        self._application = application.replace(" ", "-")
        self._client: Redis | None = None
        self._address: Address | None = None

    async def connect(self) -> None:
        """Raises TargetUnavailable, and ConfigError for a url or a login that a person must mend."""
        await self.close()
        self._address = parse_address(self._url)
        self._client = line_to(self._url, self._application)
        try:
            await self._client.initialize()
        except (RedisError, OSError) as error:
            await self.close()
            raise self._translated(error, opening=True) from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open(self) -> Redis:
        if self._client is None:
            raise TargetUnavailable(
                "the session with the target has ended", where=self.place, fix="it connects again by itself"
            )
        return self._client

    async def command(self, *args: Arg, opening: bool = False) -> Any:
        return await self._run(args, opening=opening)

    async def infos(self) -> dict[str, dict[str, Any]]:
        """What the server says of itself; of a cluster's nodes there are many."""
        client = self._open()
        try:
            found = dict(await client.info())
        except (RedisError, OSError) as error:
            await self.close()
            raise self._translated(error, opening=True) from error
        self._major = major_of(found)
        return {str(self._address): found}

    async def script(self, script: Script, args: Sequence[Arg], keys: Sequence[str] = (), **how: Any) -> Any:
        """By its name; with its text where the server does not know it yet."""
        rest = (len(keys), *keys, *args)
        try:
            return await self._run(("EVALSHA", script.sha, *rest), **how)
        except NoScriptError:
            return await self._run(("EVAL", script.text, *rest), **how)

    async def _run(self, args: Sequence[Arg], *, opening: bool = False) -> Any:
        client = self._open()
        try:
            line = client.connection
            assert line is not None
            # Packed by hiredis: the client's own packing costs more than all else that a batch needs.
            await line.send_packed_command([pack_command(tuple(args))], check_health=False)  # type: ignore[arg-type]
            return await line.read_response()
        except NoScriptError:
            raise
        except ResponseError as error:  # the line is as good as before
            raise self._translated(error, opening=opening) from error
        except (RedisError, OSError) as error:
            await self.close()
            raise self._translated(error, opening=opening) from error
        except BaseException:  # cancelled between a question and its answer: the line is out of step
            await self.close()
            raise

    def _translated(self, error: Exception, *, opening: bool) -> Exception:
        user = self._address.user if self._address is not None else ""
        rule = self._rights.rule(user, self._major)
        return translate(error, self.place, user, rule=rule, opening=opening)
