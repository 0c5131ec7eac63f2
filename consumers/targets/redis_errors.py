"""What an error of the Redis client or server means for a target: what passes, what a person must mend."""

from __future__ import annotations

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
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
    "TRYAGAIN": (
        "a slot of the cluster is being moved to another node",
        "it goes on by itself when the slot has moved (redis-cli --cluster check HOST:PORT shows one that is"
        " stuck, --cluster fix ends it)",
    ),
    "TTL exhausted": (  # what the client says when it was sent to and fro for too long
        "a slot of the cluster is being moved to another node",
        "it goes on by itself when the slot has moved",
    ),
    "CLUSTERDOWN": (
        "the cluster does not serve all of its slots",
        "start the node that is down, or let a replica take over (CLUSTER INFO, CLUSTER NODES); it goes on by"
        " itself",
    ),
    "All slots are not covered": (
        "the cluster does not serve all of its slots",
        "start the node that is down, or give its slots to another (CLUSTER NODES, redis-cli --cluster fix);"
        " it goes on by itself",
    ),
    "max number of clients": (
        "the server takes no more clients",
        "raise maxclients, or end other clients; it goes on by itself",
    ),
}
# The client takes the code off the errors that it has a class for.
_CLASSES = {
    TryAgainError: "TRYAGAIN",
    SlotNotCoveredError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",  # before the class that it is of
    ClusterDownError: "CLUSTERDOWN",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    BusyLoadingError: "LOADING",
}
# As each release says it, of a command or of one in a script.
_DENIED = ("NOPERM", "ACL failure", "no permissions", "can't run this command", "can't access at least one")


def translate(error: Exception, place: str, user: str, *, rule: str, opening: bool = False) -> TailraceError:
    """`rule`: the line of the ACL that gives the user all that the target needs. `opening`: at start a person
    must mend what later may be mended while we wait."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = next((code for kind, code in _CLASSES.items() if isinstance(error, kind)), "")
    for word, (what, fix) in _PASSING.items():
        if word == code or (word in text and isinstance(error, RedisError | RedisClusterException)):
            return TargetUnavailable(f"{what} ({text[:200]})", where=place, fix=fix)
    if isinstance(error, AskError) or text.startswith(("MOVED ", "ASK ")):
        what = f"the server has become a node of a Redis Cluster ({text[:200]})"
        return TargetUnavailable(what, where=place, fix="it is looked at anew, and goes on by itself")
    if isinstance(error, NoPermissionError) or any(words in text for words in _DENIED):
        kind = ConfigError if opening else TargetUnavailable
        what = f"the user {user!r} lacks a right: {text}"
        return kind(what, where=place, fix=f"as an administrator run {rule}")
    if isinstance(error, AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return _not_let_in(text, place)
    if "SELECT is not allowed in cluster mode" in text:
        fix = "write redis://user:password@host:port/0, of any of its nodes"
        return ConfigError("a Redis Cluster has database 0 only", where=place, fix=fix)
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
