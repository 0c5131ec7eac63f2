"""A condition that a user gives: one SQL expression, which is put between brackets on lines of its own. Pure.

What it says is the server's to judge. Here it is seen that the brackets around it stay around it: with one
that closes them other rows would be taken than it seems to say. Lexical rules: PostgreSQL manual, "Lexical
Structure".

    skipped   '...' with '' in it (after E also \\')   "..." with "" in it   $tag$...$tag$
              -- to the end of the line               /* ... */, nested
    brackets  ( ) and [ ], which must pair; `;` ends a statement, and must not stand outside
"""

from __future__ import annotations

import re

from streamer.errors import ConfigError

_PARTS = re.compile(
    r"""
      (?P<escaped>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<cut>(?<![\w$])[eE]')
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<dollar>(?<![\w$])\$(?P<tag>[^\W\d]\w*)?\$.*?\$(?(tag)(?P=tag))\$)
    | (?P<line>--[^\n]*)
    | (?P<comment>/\*)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<end>;)
    | (?P<loose>['"])
    """,
    re.VERBOSE | re.DOTALL,
)
_EDGE = re.compile(r"/\*|\*/")
_PAIRS = {")": "(", "]": "["}
_FIX = "write one expression, as behind WHERE: a AND (b OR c)"


def check_condition(condition: str, where: str) -> None:
    """Raises ConfigError. `where`: what gives it, for messages."""
    opened: list[str] = []
    at = 0
    while part := _PARTS.search(condition, at):
        at = part.end()
        kind, text = part.lastgroup, part[0]
        if kind == "comment":
            at = _behind_comment(condition, at, where)
        elif kind == "open":
            opened.append(text)
        elif kind == "close" and (not opened or opened.pop() != _PAIRS[text]):
            raise _no_expression(f"its {text!r} at character {at} closes nothing in it", where)
        elif kind == "end":
            raise _no_expression(f"a `;` at character {at} ends it", where)
        elif kind in ("loose", "cut"):
            raise _no_expression(f"the {text[-1]} at character {at} is never closed", where)
    if opened:
        raise _no_expression(f"its {opened[-1]!r} is never closed", where)


def _behind_comment(condition: str, at: int, where: str) -> int:
    depth = 1
    while depth:
        edge = _EDGE.search(condition, at)
        if edge is None:
            raise _no_expression("a comment in it is never closed", where)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _no_expression(why: str, where: str) -> ConfigError:
    return ConfigError(f"the condition is no expression: {why}", where=where, fix=_FIX)
