"""A batch of another data module is refused by name, before it fails deep inside a network."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from llama2_pl.data.batches import Batch, PreferenceBatch, PromptBatch
from llama2_pl.modules.base import LlamaModule

SOURCES = {
    Batch: "CorpusDataModule and DialogueDataModule give",
    PreferenceBatch: "PreferenceDataModule gives",
    PromptBatch: "PromptDataModule gives",
}


class BatchTypeModule(LlamaModule):
    """Base of the modules that take one of our three batches; batches of the user's own types are not looked at."""

    batch_type: ClassVar[type[tuple]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._refuse_other_batch(batch)
        super().on_train_batch_start(batch, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._refuse_other_batch(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._refuse_other_batch(batch)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._refuse_other_batch(batch)

    def _refuse_other_batch(self, batch: Any) -> None:
        if isinstance(batch, tuple(SOURCES)) and not isinstance(batch, self.batch_type):
            raise ValueError(
                f"{type(self).__name__} needs {self.batch_type.__name__} (as {SOURCES[self.batch_type]}) and got "
                f"{type(batch).__name__}: give it that data"
            )
        if isinstance(batch, Batch) and batch.loss_mask.dtype != torch.bool:
            raise ValueError(
                f"loss_mask of the Batch is {batch.loss_mask.dtype} and must be torch.bool, True where a token is a "
                "target: give loss_mask.bool()"
            )
