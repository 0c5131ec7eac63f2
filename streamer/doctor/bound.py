"""Which store the consumer group of a target belongs to, in Kafka's eyes: compared as apply does it (H30)."""

from __future__ import annotations

from collections.abc import Iterable

from streamer.binding import belongs_elsewhere, bound_to
from streamer.commands.brokers import embedded_folder
from streamer.config import EMBEDDED, Config
from streamer.doctor.check import Findings
from streamer.errors import TailraceError
from streamer.sandbox.kafka import embedded_bootstrap


async def bound_stores(config: Config, targets: Iterable[str]) -> dict[str, str]:
    """By target, the id of its group's store, where there is one. Of a Kafka that cannot be asked nothing is
    known: what it lacks is said of Kafka."""
    found: dict[str, str] = {}
    embedded = config.kafka.brokers == EMBEDDED
    brokers = embedded_bootstrap(embedded_folder(config)) if embedded else config.kafka.brokers
    if brokers is None:  # it does not run
        return found
    try:
        for target in targets:
            bound = await bound_to(brokers, config.kafka.security, f"{config.name}.{target}")
            if bound is not None:
                found[target] = bound
    except TailraceError:
        return found
    return found


def is_own(findings: Findings, group: str, bound: str | None, own: str | None) -> bool:
    """Whether apply would take the store for the group's. `own`: its id, None: it is as good as new."""
    if bound in (None, own):
        return True
    findings.error("identity", belongs_elsewhere(group, str(bound), own))
    return False
