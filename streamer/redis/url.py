"""What the URL of a Redis server may say, or of the Sentinels that know one. Pure, no I/O.

    redis://[user:password@]host[:port][/db][?option=value...]          rediss:// for TLS
    unix://[user:password@]/path[?db=number]
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/NAME[/db][?option=value...]
                                                                        rediss+sentinel:// for TLS

An error says what is wrong and never shows the login, also when a sign in it has cut the URL in two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
DEFAULT_USER = "default"
TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
OPTIONS = ("db", *TLS_OPTIONS)
SENTINEL_OPTIONS = ("role", "sentinel_user", "sentinel_password")
ROLES = {"primary": "master", "replica": "replica"}  # as a server's HELLO says it
_CHOICES = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
_SERVERS = ("redis", "rediss", "unix")
_SENTINELS = ("redis+sentinel", "rediss+sentinel")
_FIX = "write redis://user:password@host:6379/0, rediss://... for TLS, or unix:///path/to/socket?db=0"
_SENTINEL_FIX = "write redis+sentinel://user:password@host:26379,host:26379/NAME/0"
_ESCAPED = "write %23 for #, %2F for /, %3F for ? and %40 for @ in a user or password"
_PORTS = range(1, 65_536)


class UrlError(ValueError):
    """`what` is wrong with a URL, and the `fix`; `where`: its host, when it is known."""

    def __init__(self, what: str, fix: str, where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.where = where


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """One server. `path`: of a unix socket; `options`: those of TLS."""

    host: str
    port: int
    path: str | None
    db: int
    user: str
    password: str | None = field(repr=False)
    is_tls: bool
    options: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`server`: all that is known of it but host and port. `role`: as HELLO says it."""

    name: str
    role: str
    server: ServerUrl
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None = field(repr=False)


def read_url(url: str) -> ServerUrl | SentinelUrl:
    """Raises UrlError."""
    scheme = url.partition("://")[0].lower()
    fix = _SENTINEL_FIX if scheme in _SENTINELS else _FIX
    if scheme not in (*_SERVERS, *_SENTINELS):
        raise UrlError("is not the url of a Redis server (not shown: it may hold a password)", _FIX)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UrlError("cannot be read (not shown: it may hold a password)", fix) from None
    behind = parts.path + parts.query
    if "#" in url or ("@" in behind and "@" not in parts.netloc and scheme != "unix"):
        # Nothing of it is shown: what stands before the sign is the login.
        raise UrlError("cannot be read: a # or / or ? of the login cuts it in two", _ESCAPED)
    return _sentinels(parts) if scheme in _SENTINELS else _server(parts)


def _server(parts: SplitResult) -> ServerUrl:
    where = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
    options = _options(parts, OPTIONS, where, _FIX)
    if parts.scheme == "unix":
        if not parts.path:
            raise UrlError("is a unix:// url without a path", _FIX, where)
        return _login(parts, "", DEFAULT_PORT, unquote(parts.path), "", options, where)
    host, port = _place(where, DEFAULT_PORT, "is no host and port", _FIX, where)
    return _login(parts, host, port, None, parts.path.strip("/"), options, where)


def _sentinels(parts: SplitResult) -> SentinelUrl:
    where = parts.netloc.rpartition("@")[2]
    if not where:
        raise UrlError("names no Sentinel", _SENTINEL_FIX)
    hosts = tuple(
        _place(text, SENTINEL_PORT, "is no Sentinel's host and port", _SENTINEL_FIX, where)
        for text in where.split(",")
    )
    name, _, database = parts.path.removeprefix("/").partition("/")
    if not name:
        raise UrlError("names Sentinels, and no NAME that they watch", _SENTINEL_FIX, where)
    options = _options(parts, (*SENTINEL_OPTIONS, *OPTIONS), where, _SENTINEL_FIX)
    role = options.pop("role", "primary")
    if role not in ROLES:
        raise UrlError(f"has role={role}", f"write role={' or role='.join(ROLES)}", where)
    user, password = options.pop("sentinel_user", DEFAULT_USER), options.pop("sentinel_password", None)
    server = _login(parts, "", DEFAULT_PORT, None, database.strip("/"), options, where)
    return SentinelUrl(unquote(name), ROLES[role], server, hosts, user, password)


def _place(text: str, default_port: int, what: str, fix: str, where: str) -> tuple[str, int]:
    """A host and a port; of a plain URL the host may be left out."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, 0
    if port is None and text.endswith(":"):
        port = 0
    if (host is None and (text or default_port == SENTINEL_PORT)) or (
        port is not None and port not in _PORTS
    ):
        raise UrlError(f"has {text!r}, which {what}", fix, where)
    return unquote(host or "localhost"), port or default_port


def _options(parts: SplitResult, known: tuple[str, ...], where: str, fix: str) -> dict[str, str]:
    given = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in given]
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        what = f"has an option that is not known: {', '.join(unknown)}"
        raise UrlError(what, f"take it out; known are {', '.join(known)}", where)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UrlError(f"has the option {twice} twice", "take one of them out", where)
    tls = [name for name in names if name in TLS_OPTIONS]
    if tls and not parts.scheme.startswith("rediss"):
        scheme = "rediss+sentinel://" if parts.scheme in _SENTINELS else "rediss://"
        raise UrlError(f"has {', '.join(tls)}: only a {scheme} url uses TLS", f"write {scheme}", where)
    for name, value in given:
        if name in _CHOICES and value.lower() not in _CHOICES[name]:
            fix = f"write {name}={f' or {name}='.join(_CHOICES[name])}"
            raise UrlError(f"has {name}={value}", fix, where)
    return dict(given)


def _login(
    parts: SplitResult,
    host: str,
    port: int,
    path: str | None,
    database: str,
    options: dict[str, str],
    where: str,
) -> ServerUrl:
    number = options.pop("db", database) or "0"
    if not (number.isascii() and number.isdigit()):
        fix = _SENTINEL_FIX if parts.scheme in _SENTINELS else _FIX
        raise UrlError(f"has {number!r}, which is not a database's number", fix, where)
    login, mark, _ = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    return ServerUrl(
        host=host,
        port=port,
        path=path,
        db=int(number),
        user=unquote(user) or DEFAULT_USER,
        password=unquote(password) if mark and colon and password else None,
        is_tls=parts.scheme.startswith("rediss"),
        options=options,
    )
