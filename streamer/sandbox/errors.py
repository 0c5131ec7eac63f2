"""What can go wrong with a sandbox server."""

from __future__ import annotations

from streamer.errors import FatalError


class SandboxError(FatalError):
    """A sandbox server cannot be had; `log_tail` holds its own last words, shown with the message."""

    def __init__(self, what: str, *, fix: str = "", where: str = "", log_tail: str = "") -> None:
        super().__init__(what, fix=fix, where=where)
        self.log_tail = log_tail

    def __str__(self) -> str:
        text = super().__str__()
        if not self.log_tail:
            return text
        quoted = "\n".join(f"  | {line}" for line in self.log_tail.splitlines())
        return f"{text}\n  its log ends with:\n{quoted}"
