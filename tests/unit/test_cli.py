"""The command line without servers: exit codes, messages, and that every command has its options."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import typer

from consumers.cli import app
from consumers.commands import show
from streamer import __version__
from streamer.cli import run_command
from streamer.config import load
from streamer.errors import KafkaUnavailable
from streamer.sandbox.kafka import STATE_FILE

CLOSED = "127.0.0.1:1"  # no Kafka listens there

CONFIG = f"""
name: acme
kafka: {{brokers: "{CLOSED}"}}
sources:
  shop: {{kind: postgres, url: "postgresql://u:hunter2@127.0.0.1:1/db", tables: {{"public.*": {{}}}}}}
targets:
  warehouse: {{kind: postgres, url: "postgresql://u:hunter2@127.0.0.1:1/db"}}
flows:
  mirror: {{from: "shop.public.*", to: warehouse.mirror}}
"""


ROOT = Path(__file__).parents[2]

# Slow to import, and of no use to `--help`. (typer itself reads options with pydantic.)
HEAVY = {
    *("aiokafka", "asyncio", "prometheus_client", "psycopg", "redis", "rich", "sqlalchemy"),
    *("uvloop", "yaml", "consumers.apply", "consumers.targets", "streamer.config", "streamer.postgres"),
}


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("command", ["status", "lag"])
def test_an_embedded_kafka_that_does_not_run_is_to_be_started(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(CONFIG.replace(f'"{CLOSED}"', "embedded"))
    folder = tmp_path / ".tailrace" / "kafka"
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_bytes(orjson.dumps({"bootstrap": CLOSED}))  # it ran once
    assert run_command(app, [command, "-c", str(path)]) == 2
    told = capsys.readouterr().err
    assert "the embedded Kafka does not run" in told
    assert "start it with `tailrace run`" in told
    assert "brokers run" not in told


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tailrace.yaml"
    path.write_text(CONFIG)
    return path


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["--version"]) == 0
    assert capsys.readouterr().out == f"tailrace {__version__}\n"
    assert run_command(app, ["--help"]) == 0
    assert run_command(app, []) == 0
    shown = capsys.readouterr().out
    for command in ["run", "status", "lag", "capture", "apply", "reset", "init", "doctor", "sandbox", "demo"]:
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["capture", "--help"], ["nonsense"]])
def test_help_and_a_mistyped_command_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from consumers.cli import app; from streamer.cli import run_command; "
        f"run_command(app, {arguments}); print(*sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert HEAVY & set(answer.stdout.split()) == set()


def test_status_of_plain_urls_loads_no_library_of_databases(config: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import consumers.cli, consumers.commands.show; "
        f"from streamer.config import load; load(Path({str(config)!r})); print(*sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"psycopg", "sqlalchemy"} & set(answer.stdout.split()) == set()


def helps(command: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command and of every group."""
    yield path
    for name, below in command.commands.items():
        if isinstance(below, typer.core.TyperGroup):
            yield from helps(below, (*path, name))
        else:
            yield (*path, name)


ROOT_COMMAND = typer.main.get_command(app)
assert isinstance(ROOT_COMMAND, typer.core.TyperGroup)


@pytest.mark.parametrize("path", list(helps(ROOT_COMMAND)), ids=lambda path: " ".join(path) or "tailrace")
def test_every_help_fits_eighty_columns(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(app, [*path, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.endswith("...") and not line.startswith("Usage:")] == []


@pytest.mark.parametrize("command", ["run", "status", "lag", "capture", "apply", "reset", "doctor", "init"])
def test_every_command_takes_config_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, [command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "-c" in shown
    assert "--config" in shown
    assert "--json" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["capture"],
        ["status", "--nonsense"],
        ["status", "surplus"],
        ["capture", "shop", "--metrics-port", "many"],
        ["status", "--log-format", "xml"],
        ["status", "--log-level", "loud"],
        ["status", "-c", "/nonexistent/tailrace.yaml"],
        ["sandbox", "up", "--kafka", "2"],
        ["sandbox", "up", "--postgres", "99"],
        ["sandbox", "up", "--valkey", "-1"],
        ["sandbox", "up", "--keep"],
        ["capture", "shop", "--metrics-port", "70000"],
        ["demo", "--seconds", "1"],
    ],
)
def test_usage_errors_exit_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, arguments) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err
    assert "Traceback" not in captured.err
    assert run_command(app, [*arguments, "--json"]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    error = orjson.loads(captured.err)["error"]
    assert error["exit_code"] == 64
    assert error["what"]
    assert error["where"]
    assert error["fix"]


COMMANDS = [path for path in helps(ROOT_COMMAND) if path]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_json_of_a_wrong_command_line(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(app, [*path, "--nonsense", "--json"]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    error = orjson.loads(captured.err)["error"]
    assert error["what"].startswith("No such option: --nonsense")
    assert error["where"] == f"tailrace {' '.join(path)}"
    assert f"{error['where']} --help" in error["fix"]


@pytest.mark.parametrize(
    "line",
    [
        *("capture shp", "apply xyz", "reset shp --yes", "reset shop", "run --log-format xml"),
        *("approve mirrr", "refuse mirrr", "adopt xyz", "tail t --from x"),
        *(
            "backfill shp orders",
            "backfill shop",
            "backfill shop orders --all",
            "backfill shop orders --rate x",
        ),
        *("backfill shop orders --delete-missing", "backfills nonsense", "backfills pause"),
        *("backfills list --source shp", "reconcile mirrr", "reconcile --threshold x", "reconcile --wait x"),
        *("reconcile --delete-extra", "reconcile --refuse-above x", "search xyz w", "search warehouse w"),
        *("replay mirrr --from-start", "replay mirror", "replay mirror --from-start --from-offset 3"),
        *("replay mirror --from-lsn x", "replay mirror --from-start --keys /nonexistent/keys"),
        *("dead-letters list xyz", "dead-letters show xyz", "dead-letters retry xyz"),
        *("dead-letters discard warehouse", "demo --seconds 1", "init"),
    ],
)
def test_what_a_command_cannot_use_is_json_with_its_place_and_cure(
    line: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(app, [*line.split(), "-c", str(config), "--json"]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    error = orjson.loads(captured.err)["error"]
    assert (error["exit_code"], error["problems"][0]["what"]) == (64, error["what"])
    assert error["what"]
    assert error["where"]
    assert error["fix"]


@pytest.mark.parametrize(
    "line", ["dead-letters list warehouse", "adopt warehouse", "approve mirror", "tail t", "backfills"]
)
def test_a_server_that_is_away_is_json_too(
    line: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(app, [*line.split(), "-c", str(config), "--json"]) == 2
    error = orjson.loads(capsys.readouterr().err)["error"]
    assert "127.0.0.1:1" in error["where"]
    assert "by itself" not in error["fix"], "nothing goes on after this command"
    assert "hunter2" not in str(error)


def test_every_fault_of_a_config_is_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tailrace.yaml"
    surplus = "".join(f"key{n}: 1\n" for n in range(30))
    path.write_text(CONFIG + surplus)
    assert run_command(app, ["status", "-c", str(path), "--json"]) == 64
    problems = orjson.loads(capsys.readouterr().err)["error"]["problems"]
    assert [p["what"] for p in problems] == [f"unknown key 'key{n}'" for n in range(30)]
    assert all(p["where"].startswith(f"{path}:") for p in problems)
    assert run_command(app, ["doctor", "-c", str(path), "--json"]) == 64
    assert len(orjson.loads(capsys.readouterr().out)["checks"]) == 30
    assert run_command(app, ["status", "-c", str(path)]) == 64
    shown = capsys.readouterr().err
    assert "unknown key 'key19'" in shown
    assert "and 10 more: `--json` has them all" in shown


@pytest.mark.parametrize(
    ("arguments", "kind", "names", "near"),
    [
        (["capture", "shp"], "source", "shop", "shop"),
        (["reset", "shp", "--yes"], "source or processor", "shop", "shop"),
        (["apply", "warehose"], "target", "warehouse", "warehouse"),
        (["apply", "xyz"], "target", "warehouse", ""),
    ],
)
def test_a_name_that_the_file_does_not_have(
    arguments: list[str],
    kind: str,
    names: str,
    near: str,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(app, [*arguments, "-c", str(config)]) == 64
    shown = capsys.readouterr().err
    assert f"{config}: there is no {kind} {arguments[1]!r}" in shown
    assert f"the file's {kind.replace(' or ', 's or ')}s: {names}" in shown
    assert (f"did you mean {near!r}?" in shown) is bool(near)


def test_reset_asks(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["reset", "shop", "-c", str(config)]) == 64
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "lag"])
def test_kafka_unreachable(command: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, [command, "-c", str(config)]) == 2
    captured = capsys.readouterr()
    assert CLOSED in captured.err
    assert "check that the brokers run" in captured.err
    assert "by itself" not in captured.err, "nothing goes on after this command"
    assert "Traceback" not in captured.err
    assert "hunter2" not in captured.err


def test_errors_as_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["status", "-c", str(config), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = orjson.loads(captured.err)["error"]
    assert error["kind"] == "KafkaUnavailable"
    assert error["exit_code"] == 2
    assert error["fix"]


def test_an_embedded_kafka_that_never_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text(CONFIG.replace(f'"{CLOSED}"', "embedded"))
    assert run_command(app, ["status", "-c", str(path)]) == 2
    assert "tailrace run" in capsys.readouterr().err


def test_nothing_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tailrace.yaml"
    source = "wiki: {kind: pull, connector: http_json, entities: {pages: {get: /pages, key: [id]}}}"
    path.write_text(f"name: acme\nsources:\n  {source}\n")
    assert run_command(app, ["run", "-c", str(path)]) == 64
    shown = capsys.readouterr().err
    assert "nothing to run" in shown
    assert "a pull source is not built yet" in shown


# The signal comes with the first module that the command imports for its work.
_TERMINATED = """
import os, signal, sys
from consumers.cli import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("streamer.commands.", "consumers.commands.")):
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
sys.argv[1:] = sys.argv[1].split()
main()
"""


@pytest.mark.parametrize("command", ["capture shop", "apply warehouse", "run"])
def test_a_part_that_is_stopped_before_it_has_begun_ends_well(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _TERMINATED, command], check=False, cwd=ROOT, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_proof_that_is_stopped_before_it_has_begun_proves_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _TERMINATED, "reconcile"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == -15


async def test_a_kafka_that_takes_connections_and_answers_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is frozen: its kernel goes on."""
    monkeypatch.setattr(show, "ANSWER_LIMIT_S", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "tailrace.yaml").write_text(CONFIG.replace(CLOSED, f"127.0.0.1:{silent.getsockname()[1]}"))
    config = load(tmp_path / "tailrace.yaml")
    with silent, pytest.raises(KafkaUnavailable) as caught:
        async with asyncio.timeout(8):  # below the first limit of its client
            await show.read_here(config, config.kafka.brokers)
    assert caught.value.what == "Kafka did not answer within 0 s"
