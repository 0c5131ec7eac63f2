"""A class archive for Kafka's JVM (CDS): with it Kafka starts in half the time.

It is made by starting and stopping one Kafka, some seconds once for a Java and a set of jars: only who
starts many makes it. Every start uses the one that is there; a JVM that cannot use it ignores it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.jars import class_path, exclusive, jar_folder
from streamer.sandbox.java import java_program
from streamer.sandbox.kafka import KafkaServer, archive_path


def can_archive(java: Path) -> bool:
    """Whether this Java has the archive of its own classes that another is laid upon."""
    return (java.resolve().parents[1] / "lib" / "server" / "classes.jsa").exists()


def make_archive() -> Path | None:
    """The archive of this machine's Java, made if it is missing; None when this Java makes none."""
    java = java_program()
    if not can_archive(java):
        return None
    class_path()
    path = archive_path(java)
    with exclusive(jar_folder() / ".archive.lock"):
        if path.exists():
            return path
        with tempfile.TemporaryDirectory(prefix=".archive-", dir=jar_folder()) as scratch:
            made = Path(scratch) / path.name
            server = KafkaServer(Path(scratch) / "kafka", keep=False, archive_at_exit=made)
            try:
                server.start()
                server.stop()
            except SandboxError:
                return None
            finally:
                server.close()
            if not made.exists():
                return None
            made.replace(path)
    return path
