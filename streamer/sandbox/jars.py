"""The jars of Kafka: the committed lock, and a per-user cache that holds exactly what it names.

`kafka.lock.json` lists every jar by coordinate, size and sha256 and names no host: where jars come
from is jgo's business (Maven Central, or the user's own `repositories` in jgo's settings file).
A jar enters the cache only when its sha256 is the lock's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from streamer.sandbox.errors import SandboxError

LOCK_FILE = Path(__file__).with_name("kafka.lock.json")
DOWNLOADS_AT_ONCE = 4
TRIES = 3
"""Attempts for one jar; a line cut in the middle is the usual reason for a second."""
TIMEOUT_S = 60

ByteProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class KafkaLock:
    """The lock: Kafka's version and its jars; `digest` names the cache folder."""

    kafka: str
    jars: tuple[Jar, ...]
    digest: str


def read_lock(path: Path = LOCK_FILE) -> KafkaLock:
    """The committed lock."""
    text = path.read_bytes()
    content = json.loads(text)
    jars = []
    for line in content["jars"]:
        group, artifact, version = line["coordinate"].split(":")
        jars.append(Jar(group, artifact, version, line["bytes"], line["sha256"]))
    return KafkaLock(content["kafka"], tuple(jars), hashlib.sha256(text).hexdigest()[:12])


def cache_folder() -> Path:
    """Per-user cache, `$XDG_CACHE_HOME/tailrace` or `~/.cache/tailrace`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tailrace"


def cached() -> bool:
    """True when every jar is there (by size; `class_path` checks the sums)."""
    lock = read_lock()
    folder = _folder(lock)
    with contextlib.suppress(OSError):
        return all((folder / jar.filename).stat().st_size == jar.bytes for jar in lock.jars)
    return False


def class_path(progress: ByteProgress | None = None) -> list[Path]:
    """Paths of all jars, downloaded as needed, each with the sha256 of the lock.

    Raises:
        SandboxError: no network, or a jar with another sum.
    """
    lock = read_lock()
    folder = _folder(lock)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock"):
        missing = [jar for jar in lock.jars if _sha256(folder / jar.filename) != jar.sha256]
        if missing:
            _download(missing, folder, progress or (lambda _done, _all: None))
    return [folder / jar.filename for jar in lock.jars]


def class_path_with_bar() -> list[Path]:
    """`class_path` with a progress bar on stderr while something is downloaded."""
    if cached():
        return class_path()
    from rich.console import Console  # noqa: PLC0415  seldom needed, and slow to import
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Apache Kafka {read_lock().kafka}", total=None)
        return class_path(lambda done, total: bar.update(task, completed=done, total=total))


def jar_folder() -> Path:
    """Where the jars of the lock are, and what is made of them."""
    return _folder(read_lock())


def _folder(lock: KafkaLock) -> Path:
    return cache_folder() / f"kafka-{lock.kafka}-{lock.digest}"


def _download(jars: list[Jar], folder: Path, progress: ByteProgress) -> None:
    total = sum(jar.bytes for jar in jars)
    done = 0
    counting = Lock()

    def count(size: int) -> None:
        nonlocal done
        with counting:
            done += size
            progress(min(done, total), total)

    with (
        tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
        ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="kafka-jars") as pool,
    ):
        list(pool.map(lambda jar: _fetch(jar, Path(scratch), folder, count), jars))


def _fetch(jar: Jar, scratch: Path, folder: Path, count: Callable[[int], None]) -> None:
    """One jar by jgo into `scratch`, checked, then moved into the cache."""
    artifact = jgo_artifact(jar.group, jar.artifact, jar.version, scratch, count)
    reason = ""
    for _ in range(TRIES):
        try:
            path = Path(artifact.resolve())
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            reason = str(error)
        else:
            found = _sha256(path)
            if found == jar.sha256:
                path.replace(folder / jar.filename)
                return
            reason = f"its sha256 is {found}, the lock says {jar.sha256}"
        shutil.rmtree(scratch / artifact.component.path_prefix, ignore_errors=True)
    raise SandboxError(
        f"could not fetch {jar.group}:{jar.artifact}:{jar.version}: {reason}",
        fix="check the network and try again (a mirror: `central = URL` below [repositories] in "
        "~/.config/jgo.conf)",
    )


def jgo_artifact(group: str, name: str, version: str, folder: Path, count: Callable[[int], None]) -> Any:
    """jgo's artifact for a coordinate, with `folder` as its repository cache and jgo's own resolver.

    The resolver is pure Python: no `mvn` is needed.
    """
    try:  # here and not above: the extra `sandbox` may be missing
        from jgo.config import GlobalSettings  # noqa: PLC0415
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415
    except ImportError as error:
        raise SandboxError("jgo is not installed", fix="pip install 'tailrace[sandbox]'") from error

    @contextlib.contextmanager
    def counted(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield count

    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    context = MavenContext(
        resolver=PythonResolver(progress_callback=counted),
        repo_cache=folder,
        remote_repos=repositories,
        timeout=TIMEOUT_S,
    )
    return context.project(group, name).at_version(version).artifact()


def _sha256(path: Path) -> str:
    """Hex digest of a file, empty when there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
