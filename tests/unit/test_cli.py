"""The command line without servers: exit codes, messages, and that every command has its options."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import structlog

from consumers.cli import app
from streamer import __version__
from streamer.cli import run_command

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


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


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
    ],
)
def test_usage_errors_exit_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, arguments) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err
    assert "Traceback" not in captured.err


def test_a_source_that_is_not_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["capture", "shp"], ["reset", "shp", "--yes"]):
        assert run_command(app, [*command, "-c", str(config)]) == 64
        assert "shp" in capsys.readouterr().err


def test_reset_asks(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["reset", "shop", "-c", str(config)]) == 64
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "lag"])
def test_kafka_unreachable(command: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, [command, "-c", str(config)]) == 2
    captured = capsys.readouterr()
    assert CLOSED in captured.err
    assert "check that the brokers run" in captured.err
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
    source = (
        'game: {kind: redis, url: "redis://h", entities: {players: {pattern: "player:{id}", type: string}}}'
    )
    path.write_text(f"name: acme\nsources:\n  {source}\n")
    assert run_command(app, ["run", "-c", str(path)]) == 64
    shown = capsys.readouterr().err
    assert "nothing to run" in shown
    assert "a redis source is not built yet" in shown
