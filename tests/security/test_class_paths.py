"""A config of a stranger names no code: class paths are refused before their import, wherever they stand."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from jsonargparse._common import parsing_settings

from llama2_pl.cli import main

EVIL = "import pathlib\npathlib.Path(__file__).with_name('marker').touch()\nclass Thing:\n    pass\n"
# `llama2_plx`: an allowed name is a package, not the beginning of one. The last: through an allowed module to os.
PATHS = (
    "evil_module.Thing",
    "llama2_plx.Thing",
    "os.system",
    "subprocess.Popen",
    "builtins.exec",
    "lightning.pytorch.trainer.trainer.os.system",
)
GATT = {"source_dialogues": "d", "tokenizer": "t", "out": "o"}
ALLOWED_LOGGER = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"save_dir": "."}}


def spec(path: str) -> dict:
    return {"class_path": path, "init_args": {}}


def callback_with_function(path: str) -> dict:
    init = {**GATT, "reward": path}
    return {"class_path": "llama2_pl.callbacks.GhostAttention", "init_args": init}


# Where a class path can stand, in a config file.
PLACES = {
    "model": lambda path: {"model": spec(path)},
    "model by name": lambda path: {"model": path},
    "data": lambda path: {"data": spec(path)},
    "logger": lambda path: {"trainer": {"logger": spec(path)}},
    "list of loggers": lambda path: {"trainer": {"logger": [ALLOWED_LOGGER, spec(path)]}},
    "callback": lambda path: {"trainer": {"callbacks": [spec(path)]}},
    "added callback": lambda path: {"trainer": {"callbacks+": [spec(path)]}},
    "strategy": lambda path: {"trainer": {"strategy": spec(path)}},
    "plugins": lambda path: {"trainer": {"plugins": [spec(path)]}},
    "profiler": lambda path: {"trainer": {"profiler": spec(path)}},
    "function in a callback": lambda path: {"trainer": {"callbacks": [callback_with_function(path)]}},
    "class in a callback": lambda path: {"trainer": {"callbacks": [callback_with_function(spec(path))]}},  # type: ignore[arg-type]
}
OPTIONS = {
    "--model": lambda path: [f"--model={path}"],
    "--data": lambda path: [f"--data={path}"],
    "--trainer.logger": lambda path: [f"--trainer.logger={path}"],
    "--trainer.callbacks": lambda path: [f"--trainer.callbacks+={path}"],
    "JSON on the command line": lambda path: [f'--model={{"class_path": "{path}"}}'],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two evil modules in it, which is the working folder and on the import path."""
    for name in ("evil_module", "llama2_plx"):
        (tmp_path / f"{name}.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LLAMA2_PL_ALLOW_IMPORTS", raising=False)
    # other tests allow packages of their own, and the verdicts of a process add up
    monkeypatch.setitem(parsing_settings, "import_path_verdicts", {})
    return tmp_path


def refused(args: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert not (folder / "marker").exists()
    assert not {"evil_module", "llama2_plx"} & set(sys.modules)
    return capsys.readouterr().err


# every path in one place, and one path in every place
@pytest.mark.parametrize(("place", "path"), [*product(["model"], PATHS), *product(PLACES, PATHS[:1])])
def test_a_config_cannot_name_foreign_code(
    place: str, path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump({"model": "SFTModule", **PLACES[place](path)}))
    message = refused(["fit", "--config", "config.yaml"], folder, capsys)
    assert "is not allowed" in message or "LLAMA2_PL_ALLOW_IMPORTS" in message, message


@pytest.mark.parametrize(("option", "path"), [*product(OPTIONS, PATHS[:1])])
def test_an_option_cannot_name_foreign_code(
    option: str, path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(["fit", "--model=SFTModule", *OPTIONS[option](path)], folder, capsys)
    assert "is not allowed" in message or "LLAMA2_PL_ALLOW_IMPORTS" in message, message


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch marker']",
        "model: !!python/name:os.system",
        "seed_everything: !!python/object/new:evil_module.Thing []",
    ],
)
def test_a_yaml_tag_makes_no_object(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(text)
    refused(["fit", "--config", "config.yaml"], folder, capsys)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.yaml", "https://127.0.0.1:9/x.yaml", "memory://x.yaml"]
)
@pytest.mark.parametrize("command", ["fit", "report"])
def test_a_config_is_read_from_local_files_alone(
    address: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "x.yaml" in refused([command, f"--config={address}"], folder, capsys)


def test_a_recipe_makes_no_object_and_runs_no_program(folder: Path) -> None:
    """A stage is a command of llama2-pl: its words reach no shell."""
    Path("recipe.yaml").write_text("stages: !!python/object/apply:os.system ['touch marker']")
    with pytest.raises(Exception, match="could not determine a constructor"):
        main(["recipe", "--recipe", "recipe.yaml", "--out", "run"])
    stage = {"name": "a", "command": "configs ; touch marker", "outputs": ["x"]}
    Path("recipe.yaml").write_text(yaml.safe_dump({"stages": [stage]}))
    with pytest.raises(SystemExit):
        main(["recipe", "--recipe", "recipe.yaml", "--out", "run"])
    assert not (folder / "marker").exists()


def test_the_crafted_module_does_run_where_it_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this the tests above could pass on a module that does nothing."""
    monkeypatch.setenv("LLAMA2_PL_ALLOW_IMPORTS", "evil_module")
    with pytest.raises(SystemExit):
        main(["fit", "--model=evil_module.Thing"])
    assert (folder / "marker").exists()
    sys.modules.pop("evil_module", None)
