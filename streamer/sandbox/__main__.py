"""`python -m streamer.sandbox up | down`, the same as `tailrace sandbox`."""

from __future__ import annotations

import sys

from streamer.cli import app, run_command

sys.exit(run_command(app, ["sandbox", *sys.argv[1:]]))
