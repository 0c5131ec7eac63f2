"""Who may do what over HTTP: keys, hosts, origins, and how often. Pure but for the clock that is passed in.

Without an admin key nothing is changed over HTTP. A refusal for a key never says what was wrong with it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from pydantic import SecretStr

from streamer.config import Config

WRITES_A_MINUTE = 30  # more is a script, and a script has the command line
WRONG_KEYS_A_MINUTE = 30

_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
_BEARER = "bearer "


class Right(IntEnum):
    NONE = 0
    READ = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    what: str
    fix: str = ""
    retry_after_s: int | None = None


class Keys:
    """The keys of `control.keys`. `Authorization: Bearer KEY`, or the header of `control.key_header`."""

    def __init__(self, config: Config) -> None:
        control = config.control
        self.header = control.key_header.lower()
        self.shown_header = control.key_header
        self._admin = _digest(control.keys.admin)
        self._read = _digest(control.keys.read)

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    @property
    def has_read(self) -> bool:
        return self._read is not None

    def right(self, headers: Mapping[str, str]) -> Right:
        """In the same time whichever key it is, or whether it is one. Without a read key all may read."""
        found = Right.READ if self._read is None else Right.NONE
        for given in self._given(headers):
            digest = sha256(given.encode("latin-1", "replace")).digest()  # as it came: headers are decoded so
            is_admin = hmac.compare_digest(digest, self._admin or bytes(32)) and self._admin is not None
            is_read = hmac.compare_digest(digest, self._read or bytes(32)) and self._read is not None
            found = max(found, Right.ADMIN if is_admin else Right.READ if is_read else Right.NONE)
        return found

    def gives_key(self, headers: Mapping[str, str]) -> bool:
        return bool(self._given(headers))

    def _given(self, headers: Mapping[str, str]) -> list[str]:
        bearer = headers.get("authorization", "")
        found = [bearer[len(_BEARER) :].strip()] if bearer.lower().startswith(_BEARER) else []
        return [key for key in [*found, headers.get(self.header, "")] if key]


def _digest(key: SecretStr | None) -> bytes | None:
    text = "" if key is None else key.get_secret_value()
    return sha256(text.encode()).digest() if text else None


class Bucket:
    """At most `a_minute` of something, and as many at once."""

    def __init__(self, a_minute: int, clock_s: Callable[[], float]) -> None:
        self._rate_s = a_minute / 60
        self._limit = float(a_minute)
        self._left = self._limit
        self._clock_s = clock_s
        self._at_s = clock_s()

    def take(self) -> int:
        """0: it may be; else in how many seconds."""
        now_s = self._clock_s()
        self._left = min(self._limit, self._left + (now_s - self._at_s) * self._rate_s)
        self._at_s = now_s
        if self._left >= 1:
            self._left -= 1
            return 0
        return max(1, round((1 - self._left) / self._rate_s))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wrong_host(host: str) -> Refusal | None:
    """Of a server that is bound to this machine alone: a name that leads here may be anybody's."""
    name = urlsplit(f"//{host}").hostname if host else None
    if name in _LOCAL_NAMES:
        return None
    return Refusal(421, "this server answers to localhost and 127.0.0.1 only", "use one of these in the URL")


def from_elsewhere(headers: Mapping[str, str]) -> Refusal | None:
    """A change that another site's page has a browser ask for."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    same = site in (None, "same-origin", "none")
    if origin is not None:
        same = same and urlsplit(origin).netloc == headers.get("host", "")
    if same:
        return None
    return Refusal(403, "a page of another site may change nothing here", "use this server's own page")


class Doors:
    """Whether a request may pass: one for all routes, so that none can forget to ask."""

    def __init__(self, config: Config, host: str, clock_s: Callable[[], float]) -> None:
        """`host`: what the server is bound to."""
        self.keys = Keys(config)
        self._loopback = is_loopback(host)
        self._writes = Bucket(WRITES_A_MINUTE, clock_s)
        self._wrong_keys = Bucket(WRONG_KEYS_A_MINUTE, clock_s)

    def host(self, headers: Mapping[str, str]) -> Refusal | None:
        return wrong_host(headers.get("host", "")) if self._loopback else None

    def read(self, headers: Mapping[str, str]) -> Refusal | None:
        """Another site's page gets no answer that it could read, but may not cause work either."""
        if headers.get("sec-fetch-site") == "cross-site":
            return Refusal(403, "a page of another site asks for it", "open this server's own page")
        return None if self.keys.right(headers) >= Right.READ else self._no_key(headers)

    def write(self, headers: Mapping[str, str]) -> Refusal | None:
        elsewhere = from_elsewhere(headers)
        if elsewhere is not None:
            return elsewhere
        if not self.keys.has_admin:
            return Refusal(
                403,
                "nothing can be changed over HTTP: there is no admin key",
                "set control.keys.admin in the config file and start `tailrace serve` again,"
                " or use the command line",
            )
        if self.keys.right(headers) < Right.ADMIN:
            return self._no_key(headers)
        wait_s = self._writes.take()
        if wait_s:
            return Refusal(429, f"more than {WRITES_A_MINUTE} changes a minute", "wait", wait_s)
        return None

    def _no_key(self, headers: Mapping[str, str]) -> Refusal:
        wait_s = self._wrong_keys.take() if self.keys.gives_key(headers) else 0
        if wait_s:
            return Refusal(429, "too many requests without a right key", "wait", wait_s)
        header = self.keys.shown_header
        return Refusal(401, "a key is needed", f"send it as `Authorization: Bearer KEY` or `{header}: KEY`")
