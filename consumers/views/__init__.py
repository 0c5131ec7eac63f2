"""What the heartbeats mean: sources, flows and parts with their states, and the worst of it in a sentence.

Pure: from the config and the records of the status topic to plain values, ready for JSON
(docs/status.md) and for `consumers.screens`. Reads nothing and draws nothing.
Unknown is not zero: a figure of a process that is silent is null.
"""

from consumers.views.amounts import UNKNOWN, duration, size
from consumers.views.findings import FINDINGS_FROM, Finding, FlowState, Grade, is_finding
from consumers.views.parts import SILENT, expected_parts, is_served, is_watched
from consumers.views.status import Plan, Status, build, lag, places

__all__ = [
    "FINDINGS_FROM",
    "SILENT",
    "UNKNOWN",
    "Finding",
    "FlowState",
    "Grade",
    "Plan",
    "Status",
    "build",
    "duration",
    "expected_parts",
    "is_finding",
    "is_served",
    "is_watched",
    "lag",
    "places",
    "size",
]
