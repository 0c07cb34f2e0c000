"""Training a language model on targets: the loss of a step is the exact mean over its global batch."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MeanMetric

from llama2_pl.data.batches import Batch
from llama2_pl.model.heads import LanguageModel
from llama2_pl.modules.global_mean import GlobalMeanModule
from llama2_pl.objectives.language import next_token_loss_from_hidden, predicting


class LanguageModule(GlobalMeanModule):
    """Pretraining and SFT: the same loss, on other tokens; of a step it is the mean over all its targets."""

    batch_type = Batch
    model: LanguageModel

    def __init__(self) -> None:
        super().__init__()
        self.val_loss = MeanMetric()

    def build_networks(self) -> None:
        if self.reads_files and self.hparams["init_from"] is not None:
            self.model = self.distributed(self.starting_model())
        else:
            self.model = self.fresh(LanguageModel, self.saved_config("backbone"))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        return self.model(tokens)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the losses of the batch's targets, and their number."""
        at = predicting(batch.loss_mask)
        hidden = self.model.hidden(batch.tokens, document_ids=batch.document_ids, at=at)
        return next_token_loss_from_hidden(hidden, self.model.head, batch.tokens, batch.loss_mask)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss_sum, targets = self.loss(batch)
        return self.backward_part(loss_sum, targets, batch.tokens.numel())

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss_sum, targets = self.loss(batch)
        self.val_loss.update(loss_sum / targets.clamp(min=1), weight=targets)

    def log_figures(self, stage: str) -> None:
        """Loss and perplexity per target over the whole set, on all ranks."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/ppl": loss.exp()}, prog_bar=True, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, T, V)."""
        return self.model(batch.tokens, document_ids=batch.document_ids)
