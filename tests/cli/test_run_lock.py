"""Two jobs on one directory: the second is refused, what a killed one left stops nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from llama2_pl.commands.run_lock import RunLock, folders_of
from llama2_pl.files import Busy, lock
from llama2_pl.rlhf.recipe import recipe

HOLD = """
import os, sys, time
from llama2_pl.files import lock
held = lock(sys.argv[1])
if os.fork():  # the child is as a loader's worker, which outlives a killed parent
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process, with a child, that holds the lock of tmp_path/run."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".run.lock")]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def trainer(root: Path, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=root, callbacks=[RunLock()],
        enable_checkpointing=False, **quiet, **options,
    )  # fmt: skip


def test_a_second_run_is_refused_by_name_until_the_first_is_killed(tmp_path, holder):
    with pytest.raises(
        ValueError, match=rf"run: process {holder.pid} on .* is training there .*wait for it, stop it"
    ):
        trainer(tmp_path / "run").fit(BoringModel())
    trainer(tmp_path / "other").fit(BoringModel())
    holder.kill()
    holder.wait()
    assert (tmp_path / ".run.lock").exists()  # left behind
    trainer(tmp_path / "run").fit(BoringModel())
    assert not (tmp_path / ".run.lock").exists()


def test_a_recipe_is_refused_too_and_with_fresh_removes_nothing(tmp_path, holder):
    path, made = tmp_path / "mine/recipe.yaml", tmp_path / "run/last.ckpt"
    path.parent.mkdir()
    path.write_text("stages: [{name: a, command: a, outputs: [$RUN/a]}]")
    made.parent.mkdir(exist_ok=True)
    made.write_text("of the running process")
    with pytest.raises(ValueError, match=rf"run: process {holder.pid} on .* runs its stages"):
        recipe(str(path), str(tmp_path / "run"), fresh=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["last.ckpt"]


def test_a_run_that_fails_leaves_no_lock(tmp_path):
    class Fails(BoringModel):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path / "run").fit(Fails())
    trainer(tmp_path / "run").fit(BoringModel())
    assert not list(tmp_path.glob(".*.lock"))


def test_looking_at_a_running_folder_is_allowed(tmp_path, holder):
    trainer(tmp_path / "run").validate(BoringModel(), verbose=False)


def test_who_held_a_lock_and_died_is_named(tmp_path):
    (tmp_path / "x.lock").write_text("process 7 on node3")
    held = lock(tmp_path / "x.lock")
    assert held is not None and held.left_by == "process 7 on node3"
    with pytest.raises(Busy, match=f"process {os.getpid()} on"):
        lock(tmp_path / "x.lock")
    held.release()
    held.release()
    again = lock(tmp_path / "x.lock")
    assert again is not None and again.left_by == ""
    again.release()


def test_every_folder_that_is_written_to_is_locked_and_the_working_directory_is_not(tmp_path, monkeypatch):
    saver = ModelCheckpoint(dirpath=tmp_path / "elsewhere")
    made = L.Trainer(accelerator="cpu", default_root_dir=tmp_path / "run", callbacks=[saver], logger=False)
    assert folders_of(made) == [tmp_path / "run", tmp_path / "elsewhere"]
    monkeypatch.chdir(tmp_path)
    made = L.Trainer(accelerator="cpu", callbacks=[saver], logger=False)
    assert folders_of(made) == [tmp_path / "elsewhere"]
