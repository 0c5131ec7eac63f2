"""What the repository says of itself is true: commands, links, locks, rules and their tests."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from consumers.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LOCKS = ["requirements.lock", "requirements-run.lock"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HAZARDS = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Written by `make bench` on the machine that has run it.
MADE_LATER = {"docs/benchmarks.md"}

Group = typer.main.get_command(app)
# A page may be about a machine's folders (/opt, /etc); these are of the machine that it was written on.
FOREIGN = re.compile(r"(?<![\w.-])/(?:work|root|home|Users)/\w", re.ASCII)


def tracked() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file in git, and of those that are about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def spans(text: str) -> Iterator[str]:
    """Every line of code on a page: inline, and in blocks without their comments."""
    for block in CODE_FENCE.findall(text):
        for line in block.splitlines():
            yield from (part.strip() for part in line.split("#")[0].split("&&"))
    for span in re.findall(r"`([^`\n]+)`", CODE_FENCE.sub("", text)):
        yield span.strip()


def subcommands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """('sandbox up', {'--dir', ...}) of every command."""
    for name, command in group.commands.items():
        options = {option for parameter in command.params for option in parameter.opts if option[0] == "-"}
        yield f"{prefix}{name}", options
        if isinstance(command, typer.core.TyperGroup):
            yield from subcommands(command, f"{prefix}{name} ")


assert isinstance(Group, typer.core.TyperGroup)
COMMANDS = dict(subcommands(Group))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_tailrace_command_on_a_page_exists(page: Path) -> None:
    for line in spans(page.read_text(encoding="utf-8")):
        found = re.match(r"(?:\S*/)?tailrace ([a-z][a-z-]*)(?: ([a-z]+)\b)?(.*)", line)
        if found is None:
            continue
        grouped = any(name.startswith(f"{found[1]} ") for name in COMMANDS)
        name = f"{found[1]} {found[2]}" if grouped and found[2] else found[1]
        assert name in COMMANDS, f"{page.name}: {line}"
        for option in re.findall(r"(?<!\S)\[?(--?[a-z][a-z-]*)", found[3]):
            assert option in COMMANDS[name], f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_make_target_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for line in spans(page.read_text(encoding="utf-8")):
        if found := re.match(r"make ([a-z][a-z-]*)((?: [A-Z_]+=\S*)*)", line):
            assert found[1] in targets, f"{page.name}: {line}"
            for variable in re.findall(r"([A-Z_]+)=", found[2]):
                assert f"$({variable})" in MAKEFILE, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_file_on_a_page_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            path = (page.parent / target).resolve()
            later = any(path == ROOT / name for name in MADE_LATER)
            assert later or path.exists(), f"{page.name}: {target}"
    for path in re.findall(r"(?<![\w/.-])((?:tests|docs|streamer|consumers)/[\w/.-]*\w\.\w+)", text):
        assert path in MADE_LATER or (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_pages_that_the_code_names_are_there() -> None:
    for path, text in tracked():
        if path.endswith((".py", ".yaml", ".yml")):
            for page in re.findall(r"docs/[\w-]+\.md", text):
                assert page in MADE_LATER or (ROOT / page).exists(), f"{path}: {page}"


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_has_hashes_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(?:index|extra-index|find-links|trusted-host)", text)
    assert not re.search(r" @ |^(?:-e|/|\.)", text, re.MULTILINE)
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*(?:\[[\w,-]+\])?==", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_the_locks_agree_and_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    everything, run = (dict(versions(name)) for name in LOCKS)
    assert run.items() <= everything.items()
    assert required(project["dependencies"]) <= run.keys()
    assert required([*extras["sandbox"], *extras["dev"]]) <= everything.keys()


def versions(name: str) -> list[tuple[str, str]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^([a-z0-9._-]+)(?:\[[\w,-]+\])?==([^\s;]+)", text, re.MULTILINE)


def required(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in requirements}


def test_every_test_that_the_readme_names_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for name in named:
        assert f"def {name}(" in tests, name


def hazards_tested() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            for number in re.findall(r"_h(\d\d)(?=_)", name):
                found.setdefault(int(number), set()).add(name)
    return found


def test_every_rule_of_the_table_has_its_tests() -> None:
    by_hazard = hazards_tested()
    rows = re.findall(r"^\| H(\d+) .*\|([^|]*)\|([^|]*)\|$", HAZARDS, re.MULTILINE)
    assert rows
    for number, files, names in rows:
        named = set(re.findall(r"`(test_\w+)`", names))
        assert named, f"H{number}"
        missing = named - by_hazard.get(int(number), set())
        assert not missing, f"H{number}: {missing}"
        for file in files.split(","):
            places = [ROOT / package / file.strip() for package in ("streamer", "consumers")]
            assert any(place.is_file() for place in places), f"H{number}: {file}"


def test_every_hazard_with_a_test_is_in_the_table() -> None:
    rows = {int(number) for number in re.findall(r"^\| H(\d+) ", HAZARDS, re.MULTILINE)}
    assert hazards_tested().keys() <= rows


def test_every_hazard_is_told() -> None:
    assert {int(number) for number in re.findall(r"\bH(\d+)\b", HAZARDS)} == set(range(1, 31))


def test_no_file_names_the_machine_it_was_written_on() -> None:
    for path, text in tracked():
        if path != "tests/unit/test_repository.py":
            found = FOREIGN.search(text)
            assert found is None, f"{path}: {found[0]}"


def test_no_message_names_a_hazard_by_its_number() -> None:
    """The numbers are of docs/architecture.md; a user who reads a message has no use for them."""
    found = []
    for folder in ("streamer", "consumers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if not re.search(r"\bH\d{1,2}\b", text):
                continue
            tree = ast.parse(text)
            said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
                if re.search(r"\bH\d{1,2}\b", node.value)
            ]
    assert found == []
