"""A step's loss as the exact mean over its global batch, however that is cut into micro-batches and over ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from llama2_pl.modules.base import scale_gradients
from llama2_pl.modules.batch_type import BatchTypeModule

# What a micro-batch's summed loss is divided by before the backward pass, only to keep numbers near those of
# a mean. Any constant gives the same step; a power of two does so without rounding.
SUM_SCALE = 4096.0


class WindowLoss(NamedTuple):
    """Of this rank's micro-batches since the last optimizer step."""

    sum: Tensor
    """() of the losses of all that counts: targets, or pairs."""
    count: Tensor
    """() how many these are."""


class GlobalMeanModule(BatchTypeModule):
    """Base of the modules that learn from targets or from pairs.

    Averaging per micro-batch would weigh a target by the company it is in: with answers of unequal length, or a last
    batch that is smaller, accumulation or more devices would change the result. So each micro-batch back-propagates
    its *sum*, and before clipping the gradients are scaled once by the global count.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window: Tensor | None = None  # sum of losses, count, tokens since the last optimizer step

    @property
    def window_loss(self) -> WindowLoss | None:
        """For callbacks, before the optimizer's step; None where nothing has been back-propagated since the last."""
        return None if self._window is None else WindowLoss(self._window[0], self._window[1])

    def on_train_start(self) -> None:
        super().on_train_start()
        self._window = None  # of a fit that was broken off

    def backward_part(self, loss_sum: Tensor, count: Tensor | int, tokens: Tensor | int) -> Tensor:
        """What `training_step` returns for a micro-batch: `loss_sum` () over `count` targets or pairs, of `tokens`."""
        # float32 counts to 2^24, four times the 4M tokens of the paper's global batch
        parts = [x if isinstance(x, Tensor) else torch.full_like(loss_sum, x) for x in (count, tokens)]
        step = torch.stack([loss_sum.detach().float(), *(part.float() for part in parts)])
        self._window = step if self._window is None else self._window + step
        return loss_sum / SUM_SCALE

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of the scaled sums into that of the mean over all that counts; clipping follows.

        Lightning has divided by accumulate_grad_batches, and averaged over the ranks. The numbers stay tensors: to
        read one would make the host wait for the GPU in every step.
        """
        if self._window is None:
            raise RuntimeError(
                "training_step has not called backward_part: return self.backward_part(loss_sum, count, tokens), or "
                "override on_before_optimizer_step too (docs/import_into_your_project.md)"
            )
        loss_sum, count, tokens = self.sum_over_ranks(self._window)
        self._window = None
        count = count.clamp(min=1.0)
        divided_by = SUM_SCALE * self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale_gradients(optimizer, divided_by / count)
        self._log_step(loss_sum / count, tokens / self.copies_of_a_batch(), optimizer)

    def _log_step(self, loss: Tensor, tokens: Tensor, optimizer: Optimizer) -> None:
        self.tokens_seen = self.tokens_seen + tokens.round().long()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/tokens", self.tokens_seen.float())
        # A plain number becomes a tensor by a copy that the host waits for.
        self.log("train/lr", torch.full_like(loss, optimizer.param_groups[0]["lr"]))

    # -- a test is a validation under another name

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_figures("val")

    def on_test_epoch_end(self) -> None:
        self.log_figures("test")

    def log_figures(self, stage: str) -> None:
        """Log, as `stage`/…, what the validation steps have gathered; nothing where each logs for itself."""
