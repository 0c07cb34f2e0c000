"""A write that fails on one rank of two ends both, at once, and what stood there still does; gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2_pl.checkpoints.sharded import folder_damage
from llama2_pl.checkpoints.verified import damage

# One script for all cases: starting two processes takes longer than all of them. A case: the kind of training, the
# rank whose disk is full, and the call that finds it so, from the second step on.
CASES = {
    "meta": ("folders", 0, "torch.save"),
    "manifest": ("folders", 0, "llama2_pl.checkpoints.sharded.write_json"),
    "shard": ("folders", 1, "llama2_pl.checkpoints.sharded.flush"),
    "mkdir": ("folders", 1, "pathlib.Path.mkdir"),
    "file": ("ddp", 0, "llama2_pl.checkpoints.verified.write_checkpoint"),
    "background": ("ddp in the background", 0, "llama2_pl.checkpoints.verified.write_checkpoint"),
    "later": ("folders in the background", 1, "llama2_pl.checkpoints.sharded.flush"),
    "sound": ("folders in the background", None, "llama2_pl.checkpoints.sharded.flush"),
}

SCRIPT = """
import pkgutil
import sys
from pathlib import Path
from unittest import mock
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from llama2_pl.checkpoints.verified import VerifiedCheckpointIO
from llama2_pl.data.batches import Batch
from llama2_pl.modules import PretrainModule

folder = Path(sys.argv[1])
backbone = dict(dim=16, n_layers=1, n_heads=2, vocab_size=64, multiple_of=16, max_seq_len=32)
row = Batch(torch.arange(12)[None] + 3, torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.int32))


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader([row] * 4, batch_size=None, collate_fn=lambda b: b)


class Full(L.Callback):
    def __init__(self, rank, call):
        original = pkgutil.resolve_name(call)

        def full(*args, **kwargs):
            if any(hasattr(arg, "write") for arg in args):  # into memory, as a collective does with objects
                return original(*args, **kwargs)
            raise OSError(28, "No space left on device")

        self.rank, self.patch = rank, mock.patch(call, side_effect=full)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == self.rank:
            self.patch.start()

    def on_exception(self, trainer, module, exception):
        if trainer.global_rank == self.rank:
            self.patch.stop()


def strategy(kind):
    if "folders" in kind:
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo")


for name, (kind, rank, call) in CASES.items():
    saver = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=1, save_top_k=1)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy(kind), max_steps=2, use_distributed_sampler=False,
        callbacks=[Full(rank, call), saver], plugins=[VerifiedCheckpointIO(background="background" in kind)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(PretrainModule(backbone), datamodule=Data())
        end = "finished"
    except Exception as error:
        end = f"{type(error).__name__} {error}"
    (folder / f"{name} {trainer.global_rank}").write_text(end)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    (folder / "train.py").write_text(f"CASES = {CASES}\n{SCRIPT}")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", [name for name, (_, rank, _) in CASES.items() if rank is not None])
def test_a_full_disk_of_one_rank_ends_both_and_leaves_the_checkpoint_before(folder, name):
    for rank in (0, 1):
        end = (folder / f"{name} {rank}").read_text()
        assert end.startswith("OSError") and "No space left on device" in end, (rank, end)
    [path] = (folder / name).glob("*.ckpt")
    assert path.name == "step=1.ckpt" and not list((folder / name).glob(".*"))
    kept = path / "meta.pt" if path.is_dir() else path
    assert (folder_damage if path.is_dir() else damage)(path) is None
    assert torch.load(kept, weights_only=True)["global_step"] == 1


def test_a_folder_put_in_place_in_the_background_is_whole_when_the_run_ends(folder):
    assert [(folder / f"sound {rank}").read_text() for rank in (0, 1)] == ["finished"] * 2
    assert sorted(path.name for path in (folder / "sound").iterdir()) == ["step=2.ckpt"]
    assert folder_damage(folder / "sound" / "step=2.ckpt") is None
    assert (folder / "sound" / "step=2.ckpt" / "manifest.json").exists()
