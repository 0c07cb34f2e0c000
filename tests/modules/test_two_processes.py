"""Two processes over gloo: the step is that of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One script for the three trainings: starting two processes takes longer than all of them.
SCRIPT = '''
import os
import sys
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from llama2_pl.data.batches import Batch
from llama2_pl.modules import PretrainModule

folder = sys.argv[1]
backbone = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16, max_seq_len=32)


class Mine(PretrainModule):
    """SGD: Adam would hide the gradient's size."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def rows(rank):
    """Four micro-batches of one row; rank 1's rows have fewer targets."""
    generator = torch.Generator().manual_seed(rank)
    for n in range(4):
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[:, 1 : (11 if rank == 0 else 2 + n)] = True
        yield Batch(torch.randint(3, 64, (1, 12), generator=generator), mask, torch.zeros(1, 12, dtype=torch.int32))


class Data(L.LightningDataModule):
    def train_dataloader(self):
        if self.trainer.world_size == 1:
            pairs = zip(rows(0), rows(1), strict=True)
            batches = [Batch(*(torch.cat(c) for c in zip(*pair, strict=True))) for pair in pairs]
        else:
            batches = list(rows(self.trainer.global_rank))
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda b: b)


class Save(L.Callback):
    """The whole weights and what was logged, from rank 0."""

    def __init__(self, kind):
        self.kind = kind

    def on_train_end(self, trainer, module):
        weights = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in module.state_dict().items()}
        metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
        if trainer.global_rank == 0:
            torch.save({"weights": weights, "metrics": metrics}, f"{folder}/{self.kind}.pt")


def train(kind, strategy, devices):
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=2, accumulate_grad_batches=2,
        gradient_clip_val=1.0, use_distributed_sampler=False, callbacks=[Save(kind)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )
    trainer.fit(Mine(backbone, init_from=f"{folder}/start.ckpt"), datamodule=Data())


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:  # Lightning runs this file again as rank 1, with LOCAL_RANK
        start = PretrainModule(backbone)
        start.configure_model()
        content = {"state_dict": start.state_dict(), "hyper_parameters": dict(start.hparams)}
        torch.save(content, f"{folder}/start.ckpt")
        train("one", "auto", 1)
    train("ddp", DDPStrategy(process_group_backend="gloo"), 2)
    sharded = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo", save_distributed_checkpoint=False
    )
    train("fsdp2", sharded, 2)
'''


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "train.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: torch.load(folder / f"{kind}.pt") for kind in ("one", "ddp", "fsdp2")}


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_with_unequal_targets_take_the_step_of_one(kind, results):
    expected, found = results["one"], results[kind]
    for name, value in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert found["metrics"]["train/loss"] == pytest.approx(expected["metrics"]["train/loss"], rel=1e-5)
    assert found["metrics"]["train/tokens"] == expected["metrics"]["train/tokens"] == 96
