"""Reward models. Llama 2 §3.2.2."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchmetrics import MetricCollection

from llama2_pl.data.batches import Packing, PreferenceBatch
from llama2_pl.evaluation.reward import UNRATED, ScoredPairs, expected_calibration_error
from llama2_pl.evaluation.reward_metrics import (
    AccuracyByRating,
    AccuracyBySafety,
    AccuracyBySource,
    Calibration,
    GatheredPairs,
    ScoreHistogram,
    UnsafeRecall,
)
from llama2_pl.evaluation.scoring import score_padded
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import ScalarModel
from llama2_pl.model.parallel import data_group
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.global_mean import GlobalMeanModule
from llama2_pl.modules.start import with_scalar_head
from llama2_pl.objectives.preference import Margin, margin_of_rating, ranking_loss, safety_auxiliary_loss


class Scores(NamedTuple):
    """One reward, read twice. Llama 2 §3.2.3."""

    logit: Tensor
    """(R,): the linear score, which WHITEN takes and in which margins and the ranking loss are."""
    sigmoid: Tensor
    """(R,): between 0 and 1, the scale of the thresholds 0.15 and 0.5."""


class RewardModule(GlobalMeanModule):
    """Score the better answer of a pair above the other, by a margin that grows with how clear it was.

    Llama 2 §3.2.2: one epoch; AdamW as in pretraining; peak rate 1e-5 (70B: 5e-6), cosine down to 10 %;
    warm-up of 3 % of the steps, at least 5; 512 pairs per batch.
    Under accumulation and on several ranks the loss of a step is the mean over all its pairs.

    Args:
        backbone: the architecture; None: that of `init_from`.
        init_from: the chat checkpoint whose backbone it starts from; None: random weights.
        margin: "none" (eq. 1), "small" or "large" (eq. 2, Table 27).
        safety_loss_weight: of the safety auxiliary loss, the cross-entropy of sigmoid(score) with the label "safe",
            averaged over all answers, 0 for those without a label; weight 0 for helpfulness. Formula and weight are
            unpublished; our choice for the safety model is 1.0.
        lr: peak learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
        warmup_ratio: share of the run's optimizer steps that warm up.
        min_warmup_steps: but at least so many.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        max_seq_len: longest context in tokens, no shorter than that of `init_from`; None: the architecture's.
    """

    batch_type = PreferenceBatch
    model: ScalarModel

    def __init__(
        self,
        backbone: ModelConfig | None = None,
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
        max_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(plain_arguments(locals()))
        self.val_metrics = MetricCollection(
            {
                "pairs": GatheredPairs(),
                "by_rating": AccuracyByRating(),
                "by_source": AccuracyBySource(),
                "by_safety": AccuracyBySafety(),
                "unsafe": UnsafeRecall(),
                "calibration": Calibration(),
                "histogram": ScoreHistogram(),
            },
            compute_groups=False,
        )

    def build_networks(self) -> None:
        if self.reads_files and self.hparams["init_from"] is not None:
            self.model = self.distributed(with_scalar_head(self.starting_model()))
        else:
            self.model = self.fresh(ScalarModel, self.saved_config("backbone"))

    def forward(self, tokens: Tensor, lengths: Tensor, packing: Packing | None = None) -> Tensor:
        """Right-padded dialogues (R, T), lengths (R,) -> linear scores (R,); the same with a packing, in less time."""
        return score_padded(self.model, tokens, lengths, packing)

    def loss(self, scores: Tensor, rating: Tensor, is_safe: Tensor) -> Tensor:
        """scores (2N,) = [chosen; rejected], rating (N,), is_safe (2N,) -> ()."""
        chosen, rejected = scores.chunk(2)
        ranking = ranking_loss(chosen, rejected, margin_of_rating(rating, self.hparams["margin"]))
        return ranking + self.hparams["safety_loss_weight"] * safety_auxiliary_loss(scores, is_safe)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        scores = self(batch.tokens, batch.lengths, batch.packing)
        loss, pairs = self.loss(scores, batch.rating, batch.is_safe), len(batch.rating)
        chosen, rejected = scores.detach().chunk(2)
        accuracy = (chosen > rejected).float().mean()
        self.log("train/accuracy", accuracy, batch_size=pairs, sync_dist=True)
        return self.backward_part(loss * pairs, pairs, batch.lengths.sum())

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self(batch.tokens, batch.lengths, batch.packing)
        self.val_metrics.update(*scores.chunk(2), batch.rating, batch.source, *batch.is_safe.chunk(2))

    def log_figures(self, stage: str) -> None:
        """Loss and the figures of Tables 7, 8 and 29 over every pair on all ranks."""
        if not self.val_metrics["pairs"].update_called:
            return
        data = getattr(self.trainer, "datamodule", None)
        self.val_metrics["by_source"].names = getattr(data, "sources", ())
        for metric in self.val_metrics.values():
            metric.process_group = data_group(self.device_mesh)
        figures = {str(name): metric.compute() for name, metric in self.val_metrics.items()}
        self.val_metrics.reset()
        pairs = ScoredPairs(*torch.atleast_1d(*figures["pairs"]))  # torchmetrics makes (1,) a scalar
        scores = torch.cat([pairs.chosen, pairs.rejected])
        default = getattr(data, "default_rating", UNRATED)  # so that the loss is that of training
        rating = pairs.rating.where(pairs.rating != UNRATED, default)
        loss = self.loss(scores, rating, torch.cat([pairs.chosen_safe, pairs.rejected_safe]))
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True)
        self.log_dict(logged_figures(figures, stage), sync_dist=True)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                for name, rows in tables(figures).items():
                    logger.log_table(
                        f"{stage}/{name}", columns=list(rows[0]), data=[[*r.values()] for r in rows]
                    )

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> Scores:
        """Scores of the 2N rows."""
        logit = self(batch.tokens, batch.lengths, batch.packing)
        return Scores(logit, logit.sigmoid())


def logged_figures(figures: dict[str, Any], stage: str) -> dict[str, float]:
    """The numbers of validation or test by their logged names; a group without pairs is left out.

    Beside each accuracy stands its number of pairs, without which nobody can say how sure it is.
    """
    everything, recall = figures["by_rating"], figures["unsafe"]["recall"]
    report = {"accuracy": everything["overall"], "pairs": float(everything["pairs"])}
    for rating, accuracy in everything["by_rating"].items():
        report[f"accuracy/{rating}"] = accuracy
        report[f"pairs/{rating}"] = float(everything["pairs_by_rating"][rating]) or None
    for name, row in figures["by_source"].items():
        report[f"accuracy/{name}"] = row["overall"]
    report |= {f"accuracy/{name}": accuracy for name, accuracy in figures["by_safety"].items()}
    report |= {"unsafe_recall": recall}
    report |= {"calibration_error": expected_calibration_error(figures["calibration"])}
    return {f"{stage}/{name}".replace(" ", "_"): value for name, value in report.items() if value is not None}


def tables(figures: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of Table 8 (a source each), of the calibration curve and of the score histogram (as fig. 27)."""
    edges, shares = figures["histogram"]["edges"], figures["histogram"]["share"]
    return {
        "accuracy_by_source": [
            {"source": name, **row["by_rating"], "all": row["overall"], "pairs": row["pairs"]}
            for name, row in figures["by_source"].items()
        ],
        "calibration": [dict(row) for row in figures["calibration"]],
        "score_histogram": [
            {"from": low, "to": high, "share": share}
            for low, high, share in zip(edges, edges[1:], shares, strict=False)
        ],
    }
