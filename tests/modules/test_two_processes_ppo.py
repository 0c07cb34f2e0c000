"""PPO on two processes over gloo, each with half of the batch or of the weights: the iteration of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One script for all trainings: starting two processes takes longer than all of them.
SCRIPT = '''
import json
import os
import sys
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from llama2_pl.callbacks import PPODoctor
from llama2_pl.data.batches import PreferenceBatch, PromptBatch
from llama2_pl.generation.sampler import Rollout
from llama2_pl.modules import PPOModule, PretrainModule, RewardModule

folder, tokenizer = sys.argv[1:]
backbone = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=290, multiple_of=16, max_seq_len=32)
randperm = torch.randperm
# Minibatches of 4 are these rows of each rank: those of one process are their union, in the same order.
ROWS = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], None: [0, 1, 4, 5, 2, 3, 6, 7]}
PROMPTS = [[1, *range(10 + i, 12 + i + i % 3)] for i in range(8)]


def answered(prompts):
    """An answer that depends on its prompt alone; rank 1's are longer, and those of even length end."""
    tokens, mask = torch.zeros(len(prompts), 20, dtype=torch.long), torch.zeros(len(prompts), 20).bool()
    lengths, finished = [], []
    for n, ids in enumerate(prompts):
        new = 2 + ids[1] % 8
        answer = torch.randint(3, 290, (new,), generator=torch.Generator().manual_seed(ids[1]))
        if new % 2 == 0:
            answer[-1] = 2
        tokens[n, : len(ids) + new] = torch.cat([torch.tensor(ids), answer])
        mask[n, len(ids) : len(ids) + new] = True
        lengths.append(len(ids) + new)
        finished.append(new % 2 == 0)
    return Rollout(
        tokens, mask, torch.zeros(tokens.shape), finished=torch.tensor(finished), lengths=torch.tensor(lengths)
    )


class Planted(PPOModule):
    """The first iteration learns from given answers in a given order; the others sample."""

    def configure_optimizers(self):
        """SGD: Adam would hide the gradient's size."""
        return torch.optim.SGD(self.parameters(), lr=0.2)

    def sample(self, prompts, generator):
        return answered(prompts) if self.iteration == 0 else super().sample(prompts, generator)

    def learn(self, experience, generator):
        torch.randperm = (lambda n, generator: torch.arange(n)) if self.iteration == 0 else randperm
        return super().learn(experience, generator)


class Data(L.LightningDataModule):
    """Rank 0 has the first half of the prompts; in the second iteration all ranks have the same."""

    rows = range(8)

    def train_dataloader(self):
        module = self.trainer.lightning_module
        rows = ROWS[module.data_rank() if module.data_ranks() > 1 else None]
        index = torch.tensor(rows)
        batches = [PromptBatch([PROMPTS[i] for i in rows], index % 3 == 0, index)]
        batches.append(PromptBatch(PROMPTS[:4], torch.arange(4) % 3 == 0, torch.arange(4)))
        return torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda b: b)


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


class Save(L.Callback):
    """The weights after each iteration, what was logged and what was sampled, from each rank."""

    def __init__(self, kind):
        self.kind = kind

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        (doctor,) = (callback for callback in trainer.callbacks if isinstance(callback, PPODoctor))
        kept = {
            "weights": {name: whole(value) for name, value in module.state_dict().items()},
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "tokens": module.last_iteration.rollout.tokens,
            "judge_start": doctor.state_dict()["judge_start"]["gold"],
        }
        torch.save(kept, f"{folder}/{self.kind}_{trainer.global_rank}_{batch_idx}.pt")


def train(kind, strategy, devices):
    files = {name: f"{folder}/{name}.ckpt" for name in ("policy", "helpfulness_reward", "safety_reward")}
    module = Planted(
        **files, tokenizer=tokenizer, max_new_tokens=10, minibatch_size=4, epochs=2, max_grad_norm=100.0,
        beta=0.3, value_coefficient=1.0, value_clip=None,
    )
    gold = lambda rows, answers: [row + len(text) for row, text in zip(rows, answers)]
    doctor = PPODoctor(dirpath=f"{folder}/{kind}", stop=False, gold=gold)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=1, use_distributed_sampler=False,
        callbacks=[doctor, Save(kind)], logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=Data())


def validate(kind, strategy, devices):
    """The figures of a reward model on four pairs, two of which have one rating."""
    L.seed_everything(0, verbose=False)  # the head is new
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(3, 290, (8, 6), generator=generator), torch.tensor([1.0, 0.0] * 4)
    pairs = PreferenceBatch(tokens, torch.full((8,), 6), torch.tensor([0, 0, 1, 3]), labels, torch.zeros(4).long())
    data = torch.utils.data.DataLoader([pairs], batch_size=None, collate_fn=lambda b: b)
    module = RewardModule(init_from=f"{folder}/policy.ckpt")
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, use_distributed_sampler=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
        torch.save(figures, f"{folder}/{kind}_figures.pt")


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:  # Lightning runs this file again as rank 1, with LOCAL_RANK
        L.seed_everything(0, verbose=False)
        for name in ("policy", "helpfulness_reward", "safety_reward"):
            start = (PretrainModule if name == "policy" else RewardModule)(backbone)
            start.configure_model()
            content = {"state_dict": start.state_dict(), "hyper_parameters": dict(start.hparams)}
            torch.save(content, f"{folder}/{name}.ckpt")
        train("one", "auto", 1)
        validate("one", "auto", 1)
    train("two", DDPStrategy(process_group_backend="gloo"), 2)
    tensor_parallel = dict(data_parallel_size=1, tensor_parallel_size=2, process_group_backend="gloo")
    train("tensor", ModelParallelStrategy(**tensor_parallel), 2)
    validate("tensor", ModelParallelStrategy(**tensor_parallel), 2)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_path) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "train.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", str(folder), tokenizer_path]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["two", "tensor"])
def test_an_iteration_of_two_processes_is_that_of_one(kind, folder):
    expected, found, start = (
        torch.load(folder / name) for name in ("one_0_0.pt", f"{kind}_0_0.pt", "policy.ckpt")
    )
    moved = [
        (expected["weights"][f"policy{name.removeprefix('model')}"] - value).abs().max()
        for name, value in start["state_dict"].items()
    ]
    assert max(moved) > 1e-3
    for name, value in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name in ("reward", "helpfulness", "kl", "response_length", "eos_rate", "tokens"):
        assert found["metrics"][f"ppo/{name}"] == pytest.approx(
            expected["metrics"][f"ppo/{name}"], rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("kind", ["two", "tensor"])
def test_the_doctor_sees_the_batch_of_all_ranks(kind, folder):
    one, two = (
        json.loads((folder / name / "doctor.jsonl").read_text().splitlines()[0])["numbers"]
        for name in ("one", kind)
    )
    for name in (
        "eos_rate",
        "length",
        "kl",
        "reward_mean",
        "reward_square",
        "whitening_error",
        "branch_tagged",
    ):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("kind", ["two", "tensor"])
def test_the_start_that_a_judge_is_compared_with_is_that_of_all_rows_once(kind, folder):
    names = ("one_0_0.pt", f"{kind}_0_0.pt", f"{kind}_1_0.pt")
    one, *two = (torch.load(folder / name)["judge_start"] for name in names)
    assert one["count"] == 8 and one["judge_sd"] > 0
    for start in two:  # a checkpoint of several ranks keeps rank 0's, which every rank then goes on from
        assert start == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert two[0] == two[1]


def test_ranks_draw_their_own_answers_and_keep_one_set_of_weights(folder):
    ranks = [torch.load(folder / f"two_{rank}_1.pt") for rank in (0, 1)]
    assert ranks[0]["tokens"].shape != ranks[1]["tokens"].shape or not torch.equal(
        ranks[0]["tokens"], ranks[1]["tokens"]
    )  # the same prompts
    for name, value in ranks[0]["weights"].items():
        assert torch.equal(ranks[1]["weights"][name], value), name


def test_tensor_parallel_ranks_count_each_pair_once(folder):
    expected, found = (torch.load(folder / f"{kind}_figures.pt") for kind in ("one", "tensor"))
    assert expected["val/pairs"] == 4 and expected["val/pairs/significantly_better"] == 2
    assert found == pytest.approx(expected, rel=1e-4)
