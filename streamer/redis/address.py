"""Where a Redis source is: its URL read once.

Owns what a URL may say and how it is shown (never the password). Makes no connection.

`redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix://[user:password@]/path?db=0`, read by
the `redis` package; of its query options only those in `OPTIONS` mean something here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url

from streamer.errors import ConfigError

DEFAULT_PORT = 6379
DEFAULT_USER = "default"
OPTIONS = (
    "db",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
_PARTS = ("host", "port", "path", "username", "password", "connection_class")
_URL_FIX = "write redis://user:password@host:6379/0, rediss://... for TLS, or unix:///path/to/socket?db=0"


@dataclass(frozen=True, slots=True)
class Address:
    """One server, one database, one user."""

    host: str
    port: int
    path: str | None  # of a unix socket; host and port mean nothing then
    db: int
    user: str
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False, compare=False)
    role: str = ""  # master or replica: what the server must be; empty: what it is

    def __str__(self) -> str:
        """'user@host:port/db': what may be printed."""
        user = "" if self.user == DEFAULT_USER else f"{self.user}@"
        return f"{user}{self.path or f'{self.host}:{self.port}'}/{self.db}"

    @property
    def role_word(self) -> str:
        return "primary" if self.role == "master" else "replica"


def parse_address(url: str) -> Address:
    """The address in a URL; ConfigError names the part that cannot be used."""
    if url.partition("://")[0].endswith("+sentinel"):
        raise ConfigError("a url of Sentinels is for a source alone", fix="name the server itself here")
    try:
        parts: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError("the url of a Redis source cannot be read", fix=_URL_FIX) from error
    where = f"{parts.get('host', parts.get('path', 'localhost'))}"
    if unknown := sorted(set(parts) - set(_PARTS) - set(OPTIONS)):
        raise ConfigError(
            f"the url has an option that is not known: {', '.join(unknown)}",
            where=where,
            fix=f"take it out; known are {', '.join(OPTIONS)}",
        )
    secure = url.lower().startswith("rediss://")
    if not secure and (given := sorted(k for k in parts if k.startswith("ssl_"))):
        raise ConfigError(
            f"{', '.join(given)}: only a rediss:// url uses TLS", where=where, fix="write rediss://"
        )
    database = url.partition("://")[2].partition("?")[0].rpartition("/")[2]
    if "db" not in parts and "path" not in parts and "/" in url.partition("://")[2] and database:
        raise ConfigError(f"{database!r} is not a database's number", where=where, fix=_URL_FIX)
    if "connection_class" in parts and not secure and "path" not in parts:
        raise ConfigError("a unix:// url without a path", where=where, fix=_URL_FIX)
    return Address(
        host=parts.get("host", "localhost"),
        port=parts.get("port", DEFAULT_PORT),
        path=parts.get("path"),
        db=parts.get("db", 0),
        user=parts.get("username") or DEFAULT_USER,
        password=parts.get("password"),
        tls=_context(parts, where) if secure else None,
    )


def place(url: str) -> str:
    """'user@host:port/db' of a URL, for messages."""
    return str(parse_address(url))


def at(url: str, host: str, port: int) -> str:
    """The same url, and login, of another server."""
    parts = urlsplit(url)
    login, mark, _ = parts.netloc.rpartition("@")
    shown = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{login}{mark}{shown}:{port}").geturl()


def _context(parts: dict[str, Any], where: str) -> ssl.SSLContext:
    """The TLS settings of a rediss:// URL: the server's certificate is checked unless the URL says not to."""
    try:
        context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
        if parts.get("ssl_check_hostname") is False or parts.get("ssl_cert_reqs") in ("none", "optional"):
            context.check_hostname = False
        if parts.get("ssl_cert_reqs") == "none":
            context.verify_mode = ssl.CERT_NONE
        if certificate := parts.get("ssl_certfile"):
            context.load_cert_chain(certificate, parts.get("ssl_keyfile"), parts.get("ssl_password"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"a TLS file of the url cannot be used: {error}", where=where, fix="correct the ssl_... options"
        ) from error
    return context
