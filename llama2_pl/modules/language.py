"""Training a language model on targets: the loss of a step is the exact mean over its global batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.data.batches import Batch
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.transformer import extend_context
from llama2_pl.modules.base import LlamaModule, check_same_config, scale_gradients
from llama2_pl.objectives.language import next_token_loss_from_hidden, predicting

# What a micro-batch's summed loss is divided by before the backward pass, only to keep numbers near those of
# a mean. Any constant gives the same step; a power of two does so without rounding.
SUM_SCALE = 4096.0


class LanguageModule(LlamaModule):
    """Pretraining and SFT: the same loss, on other tokens.

    Averaging per micro-batch would weigh a target by the company it is in: with answers of unequal length,
    accumulation or more devices would change the result. So each micro-batch back-propagates its *sum*, and
    before clipping the gradients are scaled once by the global count of targets.
    """

    model: LanguageModel

    def __init__(self) -> None:
        super().__init__()
        self.val_loss = MeanMetric()
        self._window: Tensor | None = None  # sum of losses, targets, tokens since the last optimizer step

    def build_networks(self) -> None:
        config, init_from = ModelConfig.of(self.hparams["backbone"]), self.hparams["init_from"]
        if self.attached and init_from is not None:
            model = load_language_model(init_from, tokenizer=self.tokenizer)
            if config.max_seq_len > model.config.max_seq_len:
                extend_context(model, config.max_seq_len)
            check_same_config(config, model.config, init_from)
            self.model = self.distributed(model)
        else:
            self.model = self.fresh(LanguageModel, config)

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
        self._remember(loss_sum, targets, batch.tokens.numel())
        return loss_sum / SUM_SCALE

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of the scaled sums into that of the mean over all targets; clipping follows.

        Lightning has divided by accumulate_grad_batches, and averaged over the ranks. The numbers stay tensors: to
        read one would make the host wait for the GPU in every step.
        """
        assert self._window is not None
        loss_sum, targets, tokens = self.sum_over_ranks(self._window)
        self._window = None
        targets = targets.clamp(min=1.0)
        divided_by = SUM_SCALE * self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale_gradients(optimizer, divided_by / targets)
        self._log_step(loss_sum / targets, tokens / self.copies_of_a_batch(), optimizer)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss_sum, targets = self.loss(batch)
        self.val_loss.update(loss_sum / targets.clamp(min=1), weight=targets)

    def on_validation_epoch_end(self) -> None:
        """Loss and perplexity per target over the whole validation set, on all ranks."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log_dict({"val/loss": loss, "val/ppl": loss.exp()}, prog_bar=True, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, T, V)."""
        return self.model(batch.tokens, document_ids=batch.document_ids)

    def _remember(self, loss_sum: Tensor, targets: Tensor, tokens: int) -> None:
        # float32 counts to 2^24, four times the 4M tokens of the paper's global batch
        step = torch.stack([loss_sum.detach(), targets.float(), torch.full_like(loss_sum, tokens)])
        self._window = step if self._window is None else self._window + step

    def _log_step(self, loss: Tensor, tokens: Tensor, optimizer: Optimizer) -> None:
        self.tokens_seen = self.tokens_seen + tokens.round().long()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/tokens", self.tokens_seen.float())
        self.log("train/lr", optimizer.param_groups[0]["lr"])
