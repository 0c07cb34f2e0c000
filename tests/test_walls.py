"""The table of docs/architecture.md, enforced: a room imports only the rooms that its row allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_ABOVE_DATA = {"model", "generation", "objectives", "text", "data", "checkpoints"}
_ABOVE_RLHF = {*_ABOVE_DATA, "modules", "evaluation"}
ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "model": set(),
    "objectives": set(),
    "text": set(),
    "generation": {"model"},
    "checkpoints": {"model", "text"},
    "data": {"text"},
    "modules": {*_ABOVE_DATA, "evaluation"},
    "evaluation": _ABOVE_DATA,
    "rlhf": _ABOVE_RLHF,
    "report": {"evaluation"},
    "app": {"model", "generation", "text", "checkpoints"},
    "callbacks": {*_ABOVE_DATA, "evaluation"},
    "cli": {*_ABOVE_RLHF, "rlhf", "report", "app"},
}
# cli.py, __main__.py, commands/ are one room; rlhf drives `llama2_pl.cli.main`, the one door back into it
_CLI_PARTS = {"cli", "__main__", "commands"}
_DOORS = {("rlhf/recipe.py", "llama2_pl.cli")}
# the package itself: __version__ for everybody, and its lazy public names point at their rooms
_FACADE = "__init__"


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module path below `llama2_pl`."""
    first = parts[0] if parts else _FACADE
    return "cli" if first in _CLI_PARTS else first


def imported(source: str, package: str) -> list[str]:
    """Full names of every module or `module.name` that a source imports, anywhere in it, relative ones resolved."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def wall_breaks(source: str, file: str, package: str) -> list[str]:
    """What a source of a room imports from rooms that it may not."""
    room = room_of(tuple(package.split(".")[1:]) or (Path(file).stem,))
    breaks = []
    for name in imported(source, package):
        top, *rest = name.split(".")
        if top == "callbacks" or (
            top == "llama2_pl" and room not in {"callbacks"} and rest[:1] == ["callbacks"]
        ):
            breaks.append(f"{file}: imports {name}; callbacks are named in configs, never imported")
        if top != "llama2_pl" or rest[:1] == ["__version__"] or rest == []:
            continue
        target = room_of(tuple(rest))
        door = any(file.endswith(path) and name.startswith(module) for path, module in _DOORS)
        if target not in {room, "files", *ALLOWED[room]} and target != "callbacks" and not door:
            breaks.append(f"{file}: {room} may not import {name}")
    return breaks


def sources() -> list[tuple[Path, str]]:
    """Every source file with its package, the façade apart."""
    found = []
    for folder, package in ((ROOT / "llama2_pl", "llama2_pl"), (ROOT / "callbacks", "llama2_pl.callbacks")):
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).parts[:-1]
            if path != ROOT / "llama2_pl" / "__init__.py":
                found.append((path, ".".join([package, *inner])))
    return found


@pytest.mark.parametrize(
    ("path", "package"), sources(), ids=lambda value: str(value).removeprefix(str(ROOT) + "/")
)
def test_a_room_imports_only_what_the_table_allows(path: Path, package: str) -> None:
    assert wall_breaks(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), package) == []


def test_every_room_on_disk_has_a_row() -> None:
    rooms = {room_of(tuple(package.split(".")[1:]) or (path.stem,)) for path, package in sources()}
    assert rooms <= set(ALLOWED)


def test_the_rows_are_those_of_the_architecture() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Legend")[0]
    rows = [
        line.split("|")[1].split("(")[0].strip(" `/") for line in table.splitlines() if line.startswith("| `")
    ]
    assert {room_of((row.removesuffix(".py"),)) for row in rows} == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "package", "why"),
    [
        ("from llama2_pl.modules import PPOModule", "llama2_pl.model", "upwards"),
        ("import llama2_pl.data.batches", "llama2_pl.objectives", "plain import"),
        ("from llama2_pl import modules", "llama2_pl.text", "through the package"),
        ("from llama2_pl import PPOModule", "llama2_pl.data", "through the package's lazy names"),
        ("from ..modules import ppo", "llama2_pl.data.readers", "relative, one level short"),
        ("def f():\n    from llama2_pl.cli import main", "llama2_pl.report", "inside a function"),
        ("from llama2_pl.callbacks import CarbonFootprint", "llama2_pl.rlhf", "callbacks from the package"),
        ("from callbacks import CarbonFootprint", "llama2_pl.rlhf", "callbacks by their folder"),
        ("from llama2_pl.rlhf import recipe", "llama2_pl.callbacks", "a callback that knows the recipe"),
        ("from ...modules import ppo", "llama2_pl.data.readers", "relative"),
    ],
)
def test_a_planted_violation_is_caught(source: str, package: str, why: str) -> None:
    caught = wall_breaks(source, "planted.py", package)
    if why == "relative, one level short":
        # `..modules` from data/readers is data.modules: inside the room, so no violation
        assert caught == []
    else:
        assert len(caught) == 1, why
