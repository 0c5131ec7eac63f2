"""What a Redis server's error replies mean for us.

Owns the translation of an error reply into one of our errors, with what to do next. Does no I/O.
The first word of an error reply is its code (Redis manual, "RESP protocol", simple errors).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hiredis import ReplyError

from streamer.errors import ConfigError, FatalError, SourceUnavailable, TailraceError

Arg = bytes | str | int | float
Command = Sequence[Arg]
Lacking = tuple[tuple[str, str], ...]

RUN, READ, USE = "run", "read", "use"
NAMED_LIMIT = 20  # of one kind: a source may subscribe to a thousand channels

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
# As the releases say it: of a command, and of one inside of a script.
_COMMAND = re.compile(r"run the '([^']+)' command")
_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")
CLUSTER_FIX = (
    "notifications of a Redis Cluster are sent by each node for itself, which is not built yet: "
    "capture a single server, or a primary or replica under Sentinel"
)


def code(error: ReplyError) -> str:
    """The first word: WRONGTYPE, NOSCRIPT, NOPERM, ..."""
    return str(error).partition(" ")[0]


class Denied(ConfigError):
    """The server's ACL refused it. `lacking`: (what kind of right, what of it): ("run", "GET"); `rule`: the
    administrator's line that gives it."""

    def __init__(self, lacking: Lacking, *, user: str, where: str, rule: str) -> None:
        super().__init__(
            f"the user {user!r} {told(lacking)}", where=where, fix=f"as an administrator run {rule}"
        )
        self.lacking = lacking
        self.rule = rule


def told(lacking: Lacking) -> str:
    """'may not run GET, SET; may not use the channel x'"""
    by_kind: dict[str, list[str]] = {}
    for kind, name in lacking:
        by_kind.setdefault(kind, []).append(name)
    return "; ".join(f"may not {kind} {_listed(names)}" for kind, names in by_kind.items())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED_LIMIT
    return ", ".join(names[:NAMED_LIMIT]) + (f" and {more} more" if more > 0 else "")


def translate(error: ReplyError, command: Command, *, user: str, where: str, rule: str = "") -> TailraceError:
    """An error reply as one of ours; of the command only its name and, where the ACL refused one of them, its
    key or channels are told. `rule`: the line that gives the user all it needs, when that is known."""
    text = str(error).removeprefix(_ABORTED)
    kind = text.partition(" ")[0]
    for start, meaning in _PASSING.items():
        if kind == start or text.startswith(start):
            return SourceUnavailable(f"{meaning} ({kind})", where=where, fix="nothing: it is asked again")
    name = _words(command[:1]).upper()
    if kind == "NOPERM" or any(words in text for words in _IN_SCRIPT):
        return Denied(lacking(text, command), user=user, where=where, rule=rule or grant(text, command, user))
    if kind in ("WRONGPASS", "NOAUTH") or "AUTH" in text:
        return _credentials(kind, text, where)
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


def denied(names: Sequence[str], *, user: str, where: str, rule: str = "") -> Denied:
    """The error for commands that the user lacks."""
    own = " ".join(f"+{name.lower()}" for name in names)
    return Denied(
        tuple((RUN, name) for name in names),
        user=user,
        where=where,
        rule=rule or f"ACL SETUSER {user} {own}",
    )


def lacking(text: str, command: Command) -> Lacking:
    """What a refusal by the ACL missed: the server names commands, but neither keys nor channels."""
    named = _COMMAND.search(text)
    if named is not None:
        return ((RUN, named[1].replace("|", " ").upper()),)
    if "channel" in text:
        return tuple((USE, f"the channel {name}") for name in _channels(command))
    if "key" in text and "command" not in text.replace("command arguments", ""):
        key = _key(command)
        return ((READ, f"the key {key}" if key else "the keys of its patterns"),)
    return ((RUN, _command_name(command)),)


def grant(text: str, command: Command, user: str) -> str:
    """The ACL line that gives what a refusal missed, where no more is known of what the user needs."""
    found = lacking(text, command)
    kind = found[0][0]
    if kind == USE:
        rules = " ".join(f"&{name}" for name in _channels(command))
    elif kind == READ:
        rules = "%R~*"  # of the server's patterns for keys only its administrator knows
    else:
        rules = f"+{found[0][1].lower().replace(' ', '|')}"
    return f"ACL SETUSER {user} {rules}"


def _channels(command: Command) -> list[str]:
    """PUBLISH has one channel, and the message behind it."""
    name = _words(command[:1]).upper()
    return [_word(arg) for arg in (command[1:2] if name == "PUBLISH" else command[1:])]


def _key(command: Command) -> str:
    """The first key; empty where the command is told without its arguments."""
    at = 3 if _words(command[:1]).upper().startswith("EVAL") else 1
    return _words(command[at : at + 1])


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
