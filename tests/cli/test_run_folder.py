"""`--out FOLDER`: everything that a packaged config writes goes there, and what it reads stays."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from llama2_pl.cli import main
from llama2_pl.commands.run_folder import move_run

CONFIGS = Path(__file__).parents[2] / "configs"


def as_namespace(value: Any) -> Any:
    """Mappings as the parser makes them."""
    if isinstance(value, dict):
        return Namespace(**{key: as_namespace(part) for key, part in value.items()})
    return [as_namespace(part) for part in value] if isinstance(value, list) else value


def paths(value: object) -> Iterator[str]:
    """Every text in a config."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from paths(part)
    if isinstance(value, (str, os.PathLike)):
        yield os.fspath(value)


@pytest.mark.parametrize("stage", [path.stem for path in sorted((CONFIGS / "stage").iterdir())])
def test_all_that_a_stage_writes_moves_and_nothing_that_it_reads(stage: str) -> None:
    command = "predict" if stage == "rejection_sampling" else "fit"
    sizes = [CONFIGS / "size/ppo/7B.yaml"] if stage == "ppo" else []
    files = [CONFIGS / f"stage/{stage}.yaml", *sizes, CONFIGS / "trainer/cpu.yaml"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main([command, *(f"--config={file}" for file in files), "--print_config"])
    before = yaml.safe_load(out.getvalue())
    old = before["trainer"]["default_root_dir"]
    config = as_namespace(before)
    move_run(config, "elsewhere/mine")
    after = config.as_dict()
    was, now = list(paths(before)), list(paths(after))
    assert [text for text in now if text == old or text.startswith(f"{old}/")] == []
    moved = {a: b for a, b in zip(was, now, strict=True) if a != b}
    assert {b.replace("elsewhere/mine", old) for b in moved.values()} == set(moved)
    assert now.count("elsewhere/mine") >= 3  # its root, its CSV file, W&B's folder
    assert after["data"] == before["data"]


def test_a_folder_of_one_word_is_no_name() -> None:
    logger = {"init_args": {"save_dir": "sft", "name": "sft"}}
    config = as_namespace({"trainer": {"default_root_dir": "sft", "logger": [logger], "callbacks": None}})
    move_run(config, "mine")
    assert config.as_dict()["trainer"]["logger"][0]["init_args"] == {
        "save_dir": "mine",
        "name": "sft",
    }


def test_without_a_folder_in_the_config_only_the_root_is_set() -> None:
    config = Namespace(trainer=Namespace(default_root_dir=None, logger=True, callbacks=None))
    move_run(config, "mine")
    assert config == Namespace(trainer=Namespace(default_root_dir="mine", logger=True, callbacks=None))
