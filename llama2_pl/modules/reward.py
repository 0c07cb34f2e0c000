"""Reward models. Llama 2 §3.2.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchmetrics import CatMetric

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.data.batches import PreferenceBatch
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import ScalarModel
from llama2_pl.modules.base import LlamaModule, check_same_config, plain_arguments, with_scalar_head
from llama2_pl.objectives.preference import Margin, margin_of_rating, ranking_loss, safety_auxiliary_loss

RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better")


class RewardModule(LlamaModule):
    """Score the better answer of a pair above the other, by a margin that grows with how clear it was.

    Llama 2 §3.2.2: one epoch; AdamW as in pretraining; peak rate 1e-5 (70B: 5e-6), cosine down to 10 %;
    warm-up of 3 % of the steps, at least 5; 512 pairs per batch.
    Under accumulation the loss is the mean of the micro-batches' means: every micro-batch has as many pairs.

    Args:
        backbone: the architecture.
        init_from: the chat checkpoint whose backbone it starts from; None: random weights.
        margin: "none" (eq. 1), "small" or "large" (eq. 2, Table 27).
        safety_loss_weight: of the safety auxiliary loss; 0 for helpfulness. Unpublished; our choice for the
            safety model is 1.0.
        lr: peak learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
        warmup_ratio: share of the run's optimizer steps that warm up.
        min_warmup_steps: but at least so many.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        length_groups: forward passes that a batch is cut into, rows of like length together: less padding is
            computed, and the scores stay what they are. 4 halves the work on short dialogues of one device; where
            weights are sharded each pass gathers them anew, so 1 there.
    """

    model: ScalarModel

    def __init__(
        self,
        backbone: ModelConfig,
        init_from: str | None = None,
        margin: Margin = "small",
        safety_loss_weight: float = 0.0,
        lr: float = 1e-5,
        min_lr_ratio: float = 0.1,
        warmup_ratio: float = 0.03,
        min_warmup_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
        length_groups: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(plain_arguments(locals()))
        # NaN means "not known" in the safety columns, so it must pass
        self.val_rows = CatMetric(nan_strategy="disable")

    def build_networks(self) -> None:
        config, init_from = ModelConfig.of(self.hparams["backbone"]), self.hparams["init_from"]
        if self.attached and init_from is not None:
            chat = load_language_model(init_from, tokenizer=self.tokenizer)
            check_same_config(config, chat.config, init_from)
            self.model = self.distributed(with_scalar_head(chat))
        else:
            self.model = self.fresh(ScalarModel, config)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Right-padded dialogues (R, T), lengths (R,) -> linear scores (R,)."""
        return score_in_groups(self.model, tokens, lengths, self.hparams["length_groups"])

    def loss(self, scores: Tensor, rating: Tensor, is_safe: Tensor) -> Tensor:
        """scores (2N,) = [chosen; rejected], rating (N,), is_safe (2N,) -> ()."""
        chosen, rejected = scores.chunk(2)
        ranking = ranking_loss(chosen, rejected, margin_of_rating(rating, self.hparams["margin"]))
        return ranking + self.hparams["safety_loss_weight"] * safety_auxiliary_loss(scores, is_safe)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        scores = self(batch.tokens, batch.lengths)
        loss = self.loss(scores, batch.rating, batch.is_safe)
        self._log_step(loss, scores)
        return loss

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        chosen, rejected = self(batch.tokens, batch.lengths).chunk(2)
        chosen_safe, rejected_safe = batch.is_safe.chunk(2)
        columns = [chosen, rejected, batch.rating, batch.source, chosen_safe, rejected_safe]
        self.val_rows.update(torch.stack([column.float() for column in columns], dim=1))

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy by rating and by source, and unsafe recall over every pair on all ranks."""
        rows = self.val_rows.compute()
        self.val_rows.reset()
        if not isinstance(rows, Tensor):  # torchmetrics' answer when there was no pair
            return
        loss = self.loss(rows[:, :2].T.flatten(), rows[:, 2], rows[:, 4:].T.flatten())
        sources = getattr(getattr(self.trainer, "datamodule", None), "sources", ())
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)
        report = accuracy_report(rows, sources)
        self.log_dict(report, sync_dist=True)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                table = [[name, float(value)] for name, value in report.items()]
                logger.log_table("val/reward_table", columns=["measure", "value"], data=table)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Linear scores (2N,)."""
        return self(batch.tokens, batch.lengths)

    def _log_step(self, loss: Tensor, scores: Tensor) -> None:
        chosen, rejected = scores.detach().chunk(2)
        logged = {
            "train/loss": loss.detach(),
            "train/accuracy": (chosen > rejected).float().mean(),
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.log_dict(logged, batch_size=len(chosen), prog_bar=False, sync_dist=True)


def score_in_groups(model: ScalarModel, tokens: Tensor, lengths: Tensor, groups: int) -> Tensor:
    """`model.score` of right-padded rows (R, T), lengths (R,), in so many passes by length -> (R,), in rows' order."""
    if groups == 1:
        return model.score(tokens, lengths)
    order = lengths.argsort()
    parts = [
        model.score(tokens[rows, : int(lengths[rows].max())], lengths[rows]) for rows in order.chunk(groups)
    ]
    return torch.cat(parts)[order.argsort()]


def accuracy_report(rows: Tensor, sources: Sequence[str] = ()) -> dict[str, float]:
    """What the paper's Tables 8 and 29 ask: accuracy by rating, by source, and unsafe recall at score 0.5.

    Llama 2 §3.2.2. A group without rows is left out.
    rows (N, 6): chosen and rejected score, rating, source, chosen and rejected safety (NaN unknown).
    """
    chosen, rejected, rating, source = rows[:, :4].unbind(1)
    right = (chosen > rejected).float()
    groups = {"val/accuracy": torch.ones_like(rating, dtype=torch.bool)}
    groups |= {f"val/accuracy/{name}": rating == number for number, name in enumerate(RATINGS)}
    for number in source.unique().int().tolist():
        name = sources[number] if number < len(sources) else f"source_{number}"
        groups[f"val/accuracy/{name}"] = source == number
    report = {name: right[group].mean().item() for name, group in groups.items() if group.any()}
    unsafe = rows[:, 4:] == 0  # (N, 2), as the score columns
    if unsafe.any():
        report["val/unsafe_recall"] = (rows[:, :2][unsafe] < 0).float().mean().item()
    return report
