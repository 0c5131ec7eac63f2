"""`python -m streamer.sandbox up | down`, the same as `tailrace sandbox`."""

from __future__ import annotations

from streamer.sandbox.cli import app

app(prog_name="tailrace sandbox")
