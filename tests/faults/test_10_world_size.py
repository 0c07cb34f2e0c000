"""A run on two processes, gone on with on one and again on two, trains the batches of one process with its losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama2_pl.text.tokenizer import train_tokenizer

SCRIPT = """
import json
import sys
from pathlib import Path
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from llama2_pl.data import CorpusDataModule
from llama2_pl.modules import PretrainModule

BACKBONE = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=290, multiple_of=16, max_seq_len=32)


class Seen(L.Callback):
    def __init__(self, path):
        self.file = Path(path).open("a")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = trainer.callback_metrics["train/loss"].item()
        print(json.dumps([trainer.global_step, loss, batch.tokens.tolist()]), file=self.file, flush=True)
        trainer.should_stop = trainer.global_step == steps  # the schedule is that of all six


L.seed_everything(0)
name, devices, steps, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] or None
strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1, process_group_backend="gloo")
trainer = L.Trainer(
    accelerator="cpu", devices=devices, strategy=strategy, max_steps=6, use_distributed_sampler=False,
    logger=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, gradient_clip_val=1.0,
    callbacks=[ModelCheckpoint(name, "last", save_top_k=1, every_n_train_steps=steps)],
)
data = CorpusDataModule(
    {"text": {"path": "text.txt"}}, "tokenizer.model", seq_len=16, batch_size=4, val_fraction=0.0, num_batches=6,
    cache_dir="cache",
)
trainer.callbacks.append(Seen(f"{name}.{trainer.global_rank}.jsonl"))
trainer.fit(PretrainModule(BACKBONE, lr=1e-2, warmup_steps=2), datamodule=data, ckpt_path=resume)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world_size")
    lines = [f"the cat number {n} sat on mat {n * 7 % 13} and saw {n * 5 % 11} dogs" for n in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    train_tokenizer(lines, folder, vocab_size=290)
    (folder / "train.py").write_text(SCRIPT)
    train(folder, "one", 1, 6)
    train(folder, "first", 2, 2)
    train(folder, "second", 1, 4, resume="first/last.ckpt")
    train(folder, "third", 2, 6, resume="second/last.ckpt")
    return folder


def train(folder: Path, name: str, devices: int, steps: int, resume: str = "") -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", name, str(devices), str(steps), resume]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]


def steps_of(folder: Path, name: str) -> list[tuple[int, float, list[list[int]]]]:
    """(step, loss, rows of all ranks in the order of one process) of each step."""
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob(f"{name}.*.jsonl"))
    ]
    return [
        (parts[0][0], parts[0][1], [row for rows in zip(*(p[2] for p in parts), strict=True) for row in rows])
        for parts in zip(*ranks, strict=True)
    ]


def test_a_run_moved_between_one_and_two_processes_trains_the_same_batches_with_the_same_losses(folder):
    expected = steps_of(folder, "one")
    found = [step for name in ("first", "second", "third") for step in steps_of(folder, name)]
    assert [step for step, _, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [rows for _, _, rows in found] == [rows for _, _, rows in expected]
    assert [loss for _, loss, _ in found] == pytest.approx([loss for _, loss, _ in expected], abs=1e-6)
