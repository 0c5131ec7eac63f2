"""What a Redis server's error replies mean for us.

Owns the translation of an error reply into one of our errors, with what to do next. Does no I/O.
The first word of an error reply is its code (Redis manual, "RESP protocol", simple errors).
"""

from __future__ import annotations

from collections.abc import Sequence

from hiredis import ReplyError

from streamer.errors import ConfigError, FatalError, SourceUnavailable, TailraceError

Arg = bytes | str | int | float
Command = Sequence[Arg]

# Codes that pass by themselves, and what to say about each.
_PASSING = {
    "LOADING": "the server is loading its data",
    "BUSY": "a script of somebody else blocks the server",
    "MASTERDOWN": "this replica has lost its primary and does not answer with old data",
    "OOM": "the server has no memory left for a script",
    "TRYAGAIN": "the server asks to try again",
    "ERR max number of clients reached": "the server takes no more clients (maxclients)",
}
_ABORTED = "EXECABORT Transaction discarded because of: "
CLUSTER_FIX = (
    "notifications of a Redis Cluster are sent by each node for itself, which is not built yet: "
    "capture a single server, or a primary or replica under Sentinel"
)


def code(error: ReplyError) -> str:
    """The first word: WRONGTYPE, NOSCRIPT, NOPERM, ..."""
    return str(error).partition(" ")[0]


def translate(error: ReplyError, command: Command, *, user: str, where: str) -> TailraceError:
    """An error reply as one of ours; of the command only its name and, for NOPERM, its arguments are told."""
    text = str(error).removeprefix(_ABORTED)
    kind = text.partition(" ")[0]
    for start, meaning in _PASSING.items():
        if kind == start or text.startswith(start):
            return SourceUnavailable(f"{meaning} ({kind})", where=where, fix="nothing: it is asked again")
    name = _words(command[:1]).upper()
    if kind in ("WRONGPASS", "NOAUTH") or "AUTH" in text:
        return _credentials(kind, text, where)
    if kind == "NOPERM":
        return ConfigError(
            f"the user {user!r} may not run {_command_name(command)}: {text.removeprefix('NOPERM ')}",
            where=where,
            fix=f"as an administrator run {grant(text, command, user)}",
        )
    if kind in ("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN"):
        return ConfigError("the server is a node of a Redis Cluster", where=where, fix=CLUSTER_FIX)
    if kind == "NOPROTO" or (name == "HELLO" and "unknown command" in text):
        return ConfigError(
            "the server does not speak RESP3", where=where, fix="Redis 6.0 or Valkey 7.2 at least is needed"
        )
    if "DB index" in text:
        return ConfigError(
            text, where=where, fix="correct the database's number (see `databases` of redis.conf)"
        )
    if "unknown command" in text:
        return ConfigError(
            f"the server does not know {name} (renamed or switched off by its configuration)",
            where=where,
            fix=f"allow {name} on the server, for example without rename-command",
        )
    return FatalError(f"{name} was refused: {text}", where=where, fix="see the server's log; report this")


def denied(names: Sequence[str], *, user: str, where: str) -> ConfigError:
    """The error for commands that the user lacks."""
    rules = " ".join(f"+{name.lower()}" for name in names)
    return ConfigError(
        f"the user {user!r} may not run {', '.join(names)}",
        where=where,
        fix=f"as an administrator run ACL SETUSER {user} {rules}",
    )


def grant(text: str, command: Command, user: str) -> str:
    """The ACL line that gives what a NOPERM reply missed."""
    name = _command_name(command).lower()
    if "channel" in text:
        rules = " ".join(f"&{_word(arg)}" for arg in command[1:])
    elif "key" in text and "command" not in text:
        rules = "%R~*"  # of the server's patterns for keys only its administrator knows
    else:
        rules = f"+{name.replace(' ', '|')}"
    return f"ACL SETUSER {user} {rules}"


def _credentials(kind: str, text: str, where: str) -> ConfigError:
    if kind == "NOAUTH":
        return ConfigError(
            "the server wants a password and the url has none",
            where=where,
            fix="write it into the url: redis://user:password@host:port/db",
        )
    if "without any password configured" in text:
        return ConfigError(
            "the url has a password, but the server has none for this user",
            where=where,
            fix="take the password out of the url, or set one by requirepass or ACL SETUSER",
        )
    return ConfigError(
        "the user or the password is wrong, or the user is off",
        where=where,
        fix="correct the url (redis://user:password@host:port/db); ACL LIST shows the server's users",
    )


_CONTAINERS = {
    "CONFIG",
    "CLIENT",
    "ACL",
    "SCRIPT",
    "XINFO",
    "OBJECT",
}  # their second word is part of the name


def _command_name(command: Command) -> str:
    first = _words(command[:1]).upper()
    return _words(command[:2]).upper() if first in _CONTAINERS else first


def _words(args: Command) -> str:
    return " ".join(_word(arg) for arg in args)


def _word(arg: Arg) -> str:
    return arg.decode("utf-8", "backslashreplace") if isinstance(arg, bytes) else str(arg)
