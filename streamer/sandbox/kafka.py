"""Apache Kafka 4.3, one KRaft node, as a sandbox server; also the `embedded` Kafka of a config file.

Listeners: CLIENT for everybody, CONTROLLER for itself, and on request PROXIED, which tells its
clients to come back to another port: where a proxy stands in front of it.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import signal
import socket
import time
import uuid
from pathlib import Path
from typing import Self

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.jars import class_path, jar_folder
from streamer.sandbox.java import java_program
from streamer.sandbox.server import POLL_S, GuardianLine, Server, size_of

JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xms64m", "-Xmx512m")
CONNECT_LIMIT_S = 1.0
STARTED = b"Kafka Server started"
STATE_FILE = "kafka.json"
LOG_BYTES = "10MB"
RELEASE_LIMIT_S = 15.0
"""A Kafka that stops in good order takes 1 to 3 s."""
PORT_RELEASE_LIMIT_S = 1.0
"""The guardian of the one before ends, and frees the port, some milliseconds after its Kafka."""

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A node that was killed may register again when its old session has run out, and not before.
    "broker.heartbeat.interval.ms": "250",
    "broker.session.timeout.ms": "1000",
    # A node alone has nobody to tell that nothing happens; by default it writes so twice a second.
    "metadata.max.idle.interval.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    "num.network.threads": "2",
    "num.io.threads": "4",
}


class KafkaServer(Server):
    """One Kafka node, broker and controller in one."""

    kind = "kafka"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        proxy_port: int | None = None,
        guardian: GuardianLine | None = None,
        keep: bool = True,
        settings: dict[str, str] | None = None,
        archive_at_exit: Path | None = None,
    ) -> None:
        """`proxy_port`: open a second listener (at `proxied_port`) that advertises this port;
        `settings`: more lines of server.properties; `archive_at_exit`: where the JVM writes an archive
        of its classes when it is stopped (see `streamer.sandbox.archive`).

        Without `port`, the one it had the last time on the same folder, else a free one.
        """
        super().__init__(folder, port=port, guardian=guardian, keep=keep)
        self.proxy_port = proxy_port
        self._settings = SETTINGS | (settings or {})
        self._proxied_port: int | None = None
        self._controller_port: int | None = None
        self._jvm: list[str] = []
        self._archive_at_exit = archive_at_exit

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"{self.host}:{self.port}"

    @property
    def proxied_port(self) -> int:
        """Port where the listener behind the proxy takes connections."""
        if self._proxied_port is None:
            raise SandboxError("this Kafka has no listener for a proxy", fix="pass proxy_port")
        return self._proxied_port

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def server_log_path(self) -> Path:
        """Kafka's own log (`log_path` has what the JVM prints)."""
        return self.folder / "server.log"

    def log_paths(self) -> list[Path]:
        return [self.server_log_path, self.log_path]

    def _prepare(self) -> None:
        if not self._jvm:
            jars = ":".join(str(path) for path in class_path())
            logging = self.folder / "log4j2.properties"
            logging.write_text(LOG4J.format(path=self.server_log_path, size=LOG_BYTES), encoding="utf-8")
            java = java_program()
            archive = archive_path(java)
            shared = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
            logs_to = f"-Dlog4j2.configurationFile={logging}"
            self._jvm = [str(java), *JVM, *shared, logs_to, "-cp", jars]
        if self._controller_port is None:
            self._controller_port = self.guardian.free_port()
        if self.proxy_port is not None and self._proxied_port is None:
            self._proxied_port = self.guardian.free_port()
        self._wait_for_release()
        self._write_properties()
        if not (self.data / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            self._run_to_end(
                [
                    *self._jvm,
                    "kafka.tools.StorageTool",
                    "format",
                    f"--cluster-id={cluster}",
                    "-c",
                    str(self._properties),
                ],
                "formatting Kafka's storage",
            )

    def _wait_for_release(self) -> None:
        """Wait until a Kafka whose guardian is just ending it has let go of the data."""
        try:
            lock = (self.data / ".lock").open("r+b")
        except FileNotFoundError:
            return
        deadline = time.monotonic() + RELEASE_LIMIT_S
        with lock:
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise SandboxError(
                            "another Kafka is running on this data",
                            where=str(self.data),
                            fix="stop the other `tailrace run`, or give one of them another folder",
                        ) from error
                time.sleep(POLL_S)

    def _choose_port(self) -> int:
        """The port of the last time if it is free, so that clients find the same Kafka again."""
        last = embedded_bootstrap(self.folder, running=False)
        if self._wanted_port is not None or last is None:
            return super()._choose_port()
        wanted = int(last.rpartition(":")[2])
        self._wait_for_release()
        deadline = time.monotonic() + PORT_RELEASE_LIMIT_S
        while self.guardian.ask("port", port=wanted)["port"] is None:
            if time.monotonic() > deadline:
                return super()._choose_port()
            time.sleep(POLL_S)
        return wanted

    def start(self) -> Self:
        """As `Server.start`; writes down where this Kafka listens, for `embedded_bootstrap`."""
        if not self.running:
            super().start()
            (self.folder / STATE_FILE).write_text(json.dumps({"bootstrap": self.bootstrap}), encoding="utf-8")
        return self

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _write_properties(self) -> None:
        listeners = [f"CLIENT://{self.host}:{self.port}"]
        advertised = list(listeners)
        if self._proxied_port is not None:
            listeners.append(f"PROXIED://{self.host}:{self._proxied_port}")
            advertised.append(f"PROXIED://{self.host}:{self.proxy_port}")
        listeners.append(f"CONTROLLER://{self.host}:{self._controller_port}")
        own = {
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(advertised),
            "controller.quorum.voters": f"1@{self.host}:{self._controller_port}",
            "log.dirs": str(self.data),
        }
        lines = (f"{name}={value}\n" for name, value in (self._settings | own).items())
        self._properties.write_text("".join(lines), encoding="utf-8")

    def _command(self) -> list[str]:
        at_exit = [f"-XX:ArchiveClassesAtExit={self._archive_at_exit}"] if self._archive_at_exit else []
        java, *options = self._jvm
        return [java, *at_exit, *options, "kafka.Kafka", str(self._properties)]

    def _ready(self) -> bool:
        """True when Kafka has said that it is started and its port takes a connection."""
        try:
            before = self._log_from[self.server_log_path]
            with self.server_log_path.open("rb") as log:
                log.seek(before if before <= size_of(self.server_log_path) else 0)
                if STARTED not in log.read():
                    return False
            socket.create_connection((self.host, self.port), timeout=CONNECT_LIMIT_S).close()
        except OSError:
            return False
        return True


def archive_path(java: Path) -> Path:
    """Where the class archive of this Java is, if it has been made. Another Java could not use it."""
    program = java.resolve()
    info = program.stat()
    text = f"{program} {info.st_size} {info.st_mtime_ns} {' '.join(JVM)}"
    return jar_folder() / f"classes-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsa"


def embedded_bootstrap(folder: Path, *, running: bool = True) -> str | None:
    """host:port of the Kafka whose folder this is; None when there is none, or (`running`) nobody
    listens there now."""
    try:
        bootstrap = str(json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["bootstrap"])
        if running:
            host, _, port = bootstrap.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_LIMIT_S).close()
    except (OSError, ValueError, KeyError):
        return None
    return bootstrap


LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {path}
appender.file.filePattern = {path}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %c{{1}}: %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = {size}
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.server.name = kafka.server
logger.server.level = info
"""
