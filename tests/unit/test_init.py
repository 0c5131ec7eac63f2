"""`tailrace init`: the file validates, and nothing is written over."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from streamer.commands.init import init, write
from streamer.config import load, unbuilt_flow, unbuilt_sections, unbuilt_source
from streamer.errors import ConfigError

ENVIRON = {"SOURCE_URL": "postgresql://u:p@h/s", "TARGET_URL": "postgresql://u:p@h/t"}

app = typer.Typer()
app.command()(init)


def test_the_file_validates_and_all_of_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tailrace.yaml"
    write(path)
    config = load(path, environ=ENVIRON)
    assert config.kafka.brokers == "embedded"
    assert unbuilt_sections(config) == []
    assert all(unbuilt_source(s) == [] for s in config.sources.values())
    assert all(unbuilt_flow(config, f) == [] for f in config.flows.values())
    assert config.flows["copy"].matches("source.public.orders")
    assert load(path, environ={**ENVIRON, "KAFKA": "k:9092"}).kafka.brokers == "k:9092"


def test_without_the_variables_it_names_them(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.yaml"
    write(path)
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    assert "SOURCE_URL is not set" in str(caught.value)
    assert "TARGET_URL is not set" in str(caught.value)


def test_a_file_that_is_there_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="was not changed"):
        write(path)
    assert path.read_text() == "mine"
    write(path, force=True)
    assert "name: tailrace" in path.read_text()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        write(tmp_path / "file" / "tailrace.yaml")


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'tailrace.yaml'}" in result.output
    assert f"tailrace doctor -c {tmp_path / 'tailrace.yaml'}" in result.output


def test_the_command_prints_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["-c", str(tmp_path / "x.yaml"), "--json"])
    assert orjson.loads(result.stdout)["path"] == str(tmp_path / "x.yaml")
