"""What an error of the Redis client or server means for a target: what passes, what a person must mend."""

from __future__ import annotations

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)

from streamer.errors import ConfigError, TailraceError, TargetUnavailable

# The server's words, wherever they stand: a script puts its own before and behind them.
_PASSING = {
    "READONLY": (
        "the server is a read-only replica",
        "point the url at the primary; it goes on by itself when this server is one",
    ),
    "OOM": (
        "the server is out of memory (maxmemory) and takes no writes",
        "raise maxmemory (INFO memory, CONFIG SET maxmemory), or remove keys; it goes on by itself",
    ),
    "MISCONF": (
        "the server cannot save its data and takes no writes",
        "see its log: most often its disk is full or `dir` may not be written; it goes on by itself",
    ),
    "LOADING": ("the server is loading its data", "nothing: it goes on by itself"),
    "BUSY": (
        "a script of somebody else blocks the server",
        "wait, or SCRIPT KILL; it goes on by itself",
    ),
    "MASTERDOWN": (
        "this replica has lost its primary",
        "point the url at the primary; it goes on by itself",
    ),
    "NOREPLICAS": (
        "too few replicas are connected (min-replicas-to-write)",
        "start the replicas, or lower the setting; it goes on by itself",
    ),
    "max number of clients": (
        "the server takes no more clients",
        "raise maxclients, or end other clients; it goes on by itself",
    ),
}
# The client takes the code off the errors that it has a class for.
_CLASSES = {
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    BusyLoadingError: "LOADING",
    MasterDownError: "MASTERDOWN",
}
# As each release says it, of a command or of one in a script.
_DENIED = ("NOPERM", "ACL failure", "no permissions", "can't run this command", "can't access at least one")
_CLUSTER = ("MOVED ", "ASK ", "CROSSSLOT", "CLUSTERDOWN")
CLUSTER_FIX = "a Redis Cluster is no target yet: a batch's rows and checkpoints must be in one server"
RIGHTS = "+@read +@write +@scripting +hello +ping +info +time ~_tailrace:* and ~ of the flows' keys"


def translate(error: Exception, place: str, user: str, *, opening: bool = False) -> TailraceError:
    """`opening`: at start a person must mend what later may be mended while we wait."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = next((code for kind, code in _CLASSES.items() if isinstance(error, kind)), "")
    for word, (what, fix) in _PASSING.items():
        if word == code or (word in text and isinstance(error, RedisError)):
            return TargetUnavailable(f"{what} ({text[:200]})", where=place, fix=fix)
    if any(text.startswith(word) for word in _CLUSTER):
        return ConfigError("the server is a node of a Redis Cluster", where=place, fix=CLUSTER_FIX)
    if isinstance(error, NoPermissionError) or any(words in text for words in _DENIED):
        kind = ConfigError if opening else TargetUnavailable
        what = f"the user {user!r} lacks a right: {text}"
        return kind(what, where=place, fix=f"as an administrator run ACL SETUSER {user} {RIGHTS}")
    if isinstance(error, AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return _not_let_in(text, place)
    if "DB index" in text:
        fix = "correct the database's number in the url (see `databases` of redis.conf)"
        return ConfigError(text, where=place, fix=fix)
    return TargetUnavailable(
        f"the target does not take writes: {text}", where=place, fix="it goes on by itself when it is back"
    )


def _not_let_in(text: str, place: str) -> ConfigError:
    if "without any password configured" in text:
        what = "the url has a password, but the server has none for this user"
        return ConfigError(what, where=place, fix="take the password out of the target's url, or set one")
    if "NOAUTH" in text or "Authentication required" in text:
        what = "the server wants a password and the target's url has none"
        return ConfigError(what, where=place, fix="write it: redis://user:password@host:port/db")
    what = "the user or the password is wrong, or the user is off"
    return ConfigError(what, where=place, fix="correct the target's url; ACL LIST shows the server's users")
