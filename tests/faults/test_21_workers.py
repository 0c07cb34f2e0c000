"""Case 21: a worker of the loader that dies ends the training with a message; what was saved stays whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from llama2_pl.checkpoints.verified import VerifiedCheckpointIO, damage
from llama2_pl.data.base import NumberedDataModule


class Numbers(NumberedDataModule):
    """The worker dies, or cannot read, at batch 5."""

    def __init__(self, dies: bool) -> None:
        super().__init__(batch_size=2, num_workers=1)
        self.dies = dies

    def setup(self, stage: str | None = None) -> None:
        pass

    def settings(self) -> dict:
        return {}

    def train_batches(self):
        dies = self.dies

        class Batches:
            def __len__(self) -> int:
                return 16

            def __getitem__(self, n: int) -> torch.Tensor:
                if n == 5 and dies:
                    os._exit(9)
                if n == 5:
                    raise OSError(5, "Input/output error", "tokens.bin")
                return torch.ones(2, 32)

        return Batches()


@pytest.mark.parametrize(
    ("dies", "message"),
    [
        (True, "DataLoader worker .* exited unexpectedly|Connection reset by peer"),
        (False, r"tokens\.bin"),
    ],
)
def test_a_worker_that_dies_or_cannot_read_ends_the_run_and_the_checkpoint_is_whole(
    dies: bool, message: str, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0, logger=False, default_root_dir=tmp_path,
        plugins=[VerifiedCheckpointIO()], callbacks=[saver], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    started = time.monotonic()
    with pytest.raises((RuntimeError, OSError), match=message):
        trainer.fit(BoringModel(), datamodule=Numbers(dies))
    assert time.monotonic() - started < 30
    path = tmp_path / "last.ckpt"
    assert damage(path) is None
    assert 0 < torch.load(path, weights_only=True)["global_step"] <= 5
