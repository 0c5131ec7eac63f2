"""Regenerate the lock of Kafka's jars: `python -m streamer.sandbox.lock [KAFKA_VERSION]`.

Resolves Kafka and its logging backend with jgo, each for itself (resolved together, the one's
managed versions would override the other's), downloads every jar and writes its size and sha256.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from streamer.sandbox.jars import LOCK_FILE, jgo_artifact

KAFKA = "4.3.1"
SCALA = "2.13"
LOG4J_BRIDGE = ("org.apache.logging.log4j", "log4j-slf4j-impl")
LOG4J = ("org.apache.logging.log4j", "log4j-core")


def resolve(group: str, name: str, version: str, folder: Path) -> list[Any]:
    """The artifact and everything it needs at run time."""
    artifact = jgo_artifact(group, name, version, folder, lambda _size: None)
    root = artifact.context.create_dependency(f"{group}:{name}:jar:{version}:compile")
    inputs, others = artifact.context.resolver.resolve([root])
    needed = [dependency for dependency in others if dependency.scope in ("compile", "runtime")]
    return [dependency.artifact for dependency in (*inputs, *needed)]


def make_lock(kafka: str, folder: Path) -> dict[str, Any]:
    """The lock's content for this version of Kafka."""
    artifacts = {
        (a.groupId, a.artifactId): a for a in resolve("org.apache.kafka", f"kafka_{SCALA}", kafka, folder)
    }
    # The bridge from slf4j in the version of the log4j that Kafka brings.
    for bridge in resolve(*LOG4J_BRIDGE, artifacts[LOG4J].version, folder):
        artifacts.setdefault((bridge.groupId, bridge.artifactId), bridge)
    jars = []
    for (group, name), artifact in sorted(artifacts.items()):
        content = Path(artifact.resolve()).read_bytes()
        jars.append(
            {
                "coordinate": f"{group}:{name}:{artifact.version}",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    return {"kafka": kafka, "jars": jars}


def main() -> None:
    kafka = sys.argv[1] if len(sys.argv) > 1 else KAFKA
    with tempfile.TemporaryDirectory() as folder:
        lock = make_lock(kafka, Path(folder))
    LOCK_FILE.write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
    total = sum(jar["bytes"] for jar in lock["jars"])
    sys.stdout.write(f"{LOCK_FILE.name}: Kafka {kafka}, {len(lock['jars'])} jars, {total / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
