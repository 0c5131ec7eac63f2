"""Where a Redis server is: its URL read once, and how it is shown (never the password).

Owns the settings of TLS. Makes no connection. What a URL may say is streamer.redis.url's.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from streamer.errors import ConfigError
from streamer.redis.url import DEFAULT_USER, SentinelUrl, ServerUrl, UrlError, read_url


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
    found = url_of(url)
    if isinstance(found, SentinelUrl):
        raise ConfigError("a url of Sentinels is for a source alone", fix="name the server itself here")
    return address_of(found)


def url_of(url: str) -> ServerUrl | SentinelUrl:
    try:
        return read_url(url)
    except UrlError as error:
        raise ConfigError(f"the url {error.what}", where=error.where, fix=error.fix) from None


def address_of(url: ServerUrl) -> Address:
    """Raises ConfigError: a file that TLS needs cannot be used."""
    return Address(
        host=url.host,
        port=url.port,
        path=url.path,
        db=url.db,
        user=url.user,
        password=url.password,
        tls=_context(url.options, url.host) if url.is_tls else None,
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


def _context(options: Mapping[str, str], where: str) -> ssl.SSLContext:
    """The TLS settings of a rediss:// URL: the server's certificate is checked unless the URL says not to."""
    required = options.get("ssl_cert_reqs", "required").lower()
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_check_hostname", "true").lower() == "false" or required != "required":
            context.check_hostname = False
        if required == "none":
            context.verify_mode = ssl.CERT_NONE
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"a TLS file of the url cannot be used: {error}", where=where, fix="correct the ssl_... options"
        ) from error
    return context
