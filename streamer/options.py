"""Options and arguments that several commands take, once each: what they are called, and their help.

Of both packages. Nothing is imported here but typer, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The config file.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogFormatOption = Annotated[
    str, typer.Option("--log-format", help="human or json, on stderr.", metavar="FORMAT")
]
LogLevelOption = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL")
]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; --json: one line a second.")
]

# Of a process that goes on until it is stopped.
MetricsOption = Annotated[
    int,
    typer.Option(
        min=-1,
        max=65535,
        metavar="PORT",
        help="Port on 127.0.0.1 for /metrics: 0 any free one (see `status`), -1 off.",
    ),
]
ParentOption = Annotated[int, typer.Option(hidden=True, help="End when this process ends.")]
RestartsOption = Annotated[int, typer.Option(hidden=True, help="How often it has been started again.")]

# Names of the config file.
SourceArgument = Annotated[str, typer.Argument(help="A name below `sources:`.", metavar="SOURCE")]
TargetArgument = Annotated[str, typer.Argument(help="A name below `targets:`.", metavar="TARGET")]
FlowArgument = Annotated[str, typer.Argument(help="A name below `flows:`.", metavar="FLOW")]
RunArgument = Annotated[
    str, typer.Argument(help="A run of `tailrace backfills`, or the beginning of its id.", metavar="RUN")
]
FlowOption = Annotated[str, typer.Option("--flow", help="Of this flow only.", metavar="FLOW")]
