"""A stage is taken over from another run only where that run made just this, and still has what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2_pl.rlhf.reuse import take_over
from llama2_pl.rlhf.runner import run_stages
from llama2_pl.rlhf.stages import Stage, manifest_path, started_path

SAVE_100 = "save: 100\nout: {run}/fit\n"


def fit(run: Path, config: str = SAVE_100) -> Stage:
    """A stage whose config holds the run's paths; its config is written."""
    path = run / "configs/fit.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.format(run=run))
    return Stage("fit", "train", ("fit", f"--config={path}"), (str(path),), (str(run / "fit/last.ckpt"),))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run that has made the stage."""
    run = tmp_path / "other"

    def execute(_args: list[str]) -> None:
        (run / "fit").mkdir()
        (run / "fit/last.ckpt").write_text("trained")

    run_stages(run, [fit(run)], execute, lambda _: None)
    return run


def test_a_stage_of_the_same_config_but_for_the_run_s_name_is_linked(other: Path, tmp_path: Path) -> None:
    stage = fit(tmp_path / "run")
    assert take_over(tmp_path / "run", stage, [other]) == other
    assert (tmp_path / "run/fit/last.ckpt").read_text() == "trained"
    manifest = json.loads(manifest_path(tmp_path / "run", stage).read_text())
    assert manifest["made_in"] == str(other) and str(other) not in json.dumps(manifest["files"])


def test_what_was_made_with_another_config_than_the_one_that_stands_there_is_not_taken(
    other: Path, tmp_path: Path
) -> None:
    """A refused call had rewritten the other's config to what is asked for here."""
    fit(other, "save: 7\n")
    assert take_over(tmp_path / "run", fit(tmp_path / "run", "save: 7\n"), [other]) is None


def test_what_another_version_made_is_not_taken(other: Path, tmp_path: Path) -> None:
    path = manifest_path(other, fit(other))
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.0.1"}))
    assert take_over(tmp_path / "run", fit(tmp_path / "run"), [other]) is None


@pytest.mark.parametrize("left", ["damaged", None])
def test_an_output_that_is_damaged_or_gone_is_not_taken(
    other: Path, tmp_path: Path, left: str | None
) -> None:
    last = other / "fit/last.ckpt"
    last.unlink() if left is None else last.write_text(left)
    assert take_over(tmp_path / "run", fit(tmp_path / "run"), [other]) is None
    assert not (tmp_path / "run/fit").exists()


def test_a_stage_that_was_begun_here_goes_on(other: Path, tmp_path: Path) -> None:
    stage = fit(tmp_path / "run")
    started_path(tmp_path / "run", stage).parent.mkdir()
    started_path(tmp_path / "run", stage).write_text("{}")
    assert take_over(tmp_path / "run", stage, [other]) is None
