"""Two processes over gloo: the step is that of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One script for all trainings: starting two processes takes longer than all of them.
SCRIPT = '''
import os
import sys
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from llama2_pl.data.batches import Batch, PreferenceBatch
from llama2_pl.data.unpadded import pack_pairs
from llama2_pl.modules import DPOModule, PretrainModule

folder = sys.argv[1]
backbone = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16, max_seq_len=32)


class Descent:
    """SGD: Adam would hide the gradient's size."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Mine(Descent, PretrainModule):
    pass


class MyPreferences(Descent, DPOModule):
    pass


def rows(rank):
    """Four micro-batches of one row; rank 1's rows have fewer targets."""
    generator = torch.Generator().manual_seed(rank)
    for n in range(4):
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[:, 1 : (11 if rank == 0 else 2 + n)] = True
        yield Batch(torch.randint(3, 64, (1, 12), generator=generator), mask, torch.zeros(1, 12, dtype=torch.int32))


def pairs(rank):
    """Four micro-batches of two pairs; rank 1's answers are shorter, and its rows are read packed."""
    generator = torch.Generator().manual_seed(10 + rank)
    for _ in range(4):
        prompt = torch.randint(3, 64, (2, 3), generator=generator).repeat(2, 1)
        tokens = torch.cat([prompt, torch.randint(3, 64, (4, 9), generator=generator)], 1)
        lengths = torch.randint(5, 8 if rank else 13, (4,), generator=generator)
        tokens[torch.arange(12) >= lengths[:, None]] = 0
        columns = tokens, lengths, torch.zeros(2).long(), torch.full((4,), 1.0), torch.zeros(2).long()
        packing = pack_pairs(tokens.numpy(), lengths.numpy())
        assert rank == 0 or packing is not None
        yield PreferenceBatch(*columns, packing)


def of_both(one, other):
    """The batch of two ranks' pairs: chosen rows of both, then rejected rows of both."""
    columns = []
    for a, b in zip(one[:-1], other[:-1], strict=True):
        sides = 2 if len(a) == 4 else 1
        columns.append(torch.cat([x for side in zip(a.chunk(sides), b.chunk(sides)) for x in side]))
    return PreferenceBatch(*columns)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        if self.trainer.world_size == 1:
            pairs = zip(rows(0), rows(1), strict=True)
            batches = [Batch(*(torch.cat(c) for c in zip(*pair, strict=True))) for pair in pairs]
        else:
            batches = list(rows(self.trainer.global_rank))
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda b: b)


class PairData(L.LightningDataModule):
    def train_dataloader(self):
        if self.trainer.world_size == 1:
            batches = [of_both(*both) for both in zip(pairs(0), pairs(1), strict=True)]
        else:
            batches = list(pairs(self.trainer.global_rank))
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


def train(kind, strategy, devices, module, data):
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=2, accumulate_grad_batches=2,
        gradient_clip_val=1.0, use_distributed_sampler=False, callbacks=[Save(kind)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)


def train_both(kind, strategy, devices):
    start = f"{folder}/start.ckpt"
    train(kind, strategy(), devices, Mine(init_from=start), Data())
    train(f"dpo_{kind}", strategy(), devices, MyPreferences(start, beta=1.0), PairData())


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:  # Lightning runs this file again as rank 1, with LOCAL_RANK
        start = PretrainModule(backbone)
        start.configure_model()
        content = {"state_dict": start.state_dict(), "hyper_parameters": dict(start.hparams)}
        torch.save(content, f"{folder}/start.ckpt")
        train_both("one", lambda: "auto", 1)
    train_both("ddp", lambda: DDPStrategy(process_group_backend="gloo"), 2)
    sharded = dict(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    train_both("fsdp2", lambda: ModelParallelStrategy(**sharded, process_group_backend="gloo"), 2)
'''


KINDS = ("one", "ddp", "fsdp2", "dpo_one", "dpo_ddp", "dpo_fsdp2")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "train.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {kind: torch.load(folder / f"{kind}.pt") for kind in KINDS}
    return found | {"start": torch.load(folder / "start.ckpt")["state_dict"]}


def same_weights(found: dict, expected: dict) -> None:
    for name, value in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_with_unequal_targets_take_the_step_of_one(kind, results):
    expected, found = results["one"], results[kind]
    same_weights(found, expected)
    assert found["metrics"]["train/loss"] == pytest.approx(expected["metrics"]["train/loss"], rel=1e-5)
    assert found["metrics"]["train/tokens"] == expected["metrics"]["train/tokens"] == 96


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_dpo_on_two_processes_takes_the_step_of_one(kind, results):
    expected, found = results["dpo_one"], results[f"dpo_{kind}"]
    moved = [
        (w - results["start"][f"model.{n.removeprefix('policy.')}"]).abs().max()
        for n, w in expected["weights"].items()
    ]
    assert max(moved) > 1e-3
    same_weights(found, expected)
    for name in ("train/loss", "train/accuracy", "train/margin"):
        assert found["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-5, abs=1e-7), name
