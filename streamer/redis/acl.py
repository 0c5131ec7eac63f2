"""What a user of a Redis server needs, as one rule of the server's ACL. Pure.

Owns the rule's form (Redis manual, "ACL"); what is needed for what is known in `rights`.

Redis 7 and Valkey take the rule as a selector, `(...)`: it adds to what the user has, whatever that is. A
plain rule with patterns is refused where the user has `~*` or `&*`; `resetkeys` takes away what it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SELECTORS_SINCE = 7

# What Redis 6 has in place of a command of 7; it refuses a rule that names one it does not know.
_OF_6: Mapping[str, str] = {
    "eval_ro": "eval",
    "evalsha_ro": "evalsha",
    "pexpiretime": "",
}

# No ACL takes a blank in a pattern; a quote would end the word where it is typed, a parenthesis the selector.
_UNFIT = re.compile(r"""[\s\0-\x1f\x7f"'()]""", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rights:
    """`commands` as an ACL names them; `keys`, `channels`: globs."""

    commands: tuple[str, ...]
    keys: tuple[bytes, ...]
    channels: tuple[bytes, ...] = ()
    writes: bool = False

    def names(self, major: int) -> list[str]:
        """Of the commands, as the server's release has them."""
        if major >= SELECTORS_SINCE:
            return list(self.commands)
        return [name for name in (_OF_6.get(name, name) for name in self.commands) if name]

    def rule(self, user: str, major: int = SELECTORS_SINCE) -> str:
        """The line for an administrator; `major`: of the server's release."""
        words = [f"+{name}" for name in self.names(major)]
        if major < SELECTORS_SINCE:  # there a user has every channel, unless it was taken from it
            return " ".join(["ACL SETUSER", user, *words, *_keys(self.keys, "~")])
        words += _keys(self.keys, "~" if self.writes else "%R~")
        words += _channels(self.channels)
        return f"ACL SETUSER {user} ({' '.join(words)})"


def major_of(info: Mapping[str, Any]) -> int:
    """The server's release, of INFO's values; a Valkey says which Redis it stands for."""
    number = str(info.get("redis_version", "")).partition(".")[0]
    return int(number) if number.isdigit() else SELECTORS_SINCE


def _keys(globs: Sequence[bytes], mark: str) -> list[str]:
    if b"*" in globs:
        return [f"{mark}*"]
    return [mark + _UNFIT.sub("?", glob.decode("utf-8", "replace")) for glob in globs]


def _channels(globs: Sequence[bytes]) -> list[str]:
    """A subscription's pattern is compared letter by letter: for one that no rule can hold, all channels."""
    texts = [glob.decode("utf-8", "replace") for glob in globs]
    if any(_UNFIT.search(text) for text in texts):
        return ["&*"]
    return [f"&{text}" for text in texts]
