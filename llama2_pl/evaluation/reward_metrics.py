"""The figures of `evaluation.reward` as torchmetrics: pairs come in batches, on several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llama2_pl.evaluation.reward import (
    Accuracy,
    CalibrationBin,
    ScoredPairs,
    UnsafeDetection,
    accuracy_by_rating,
    accuracy_by_safety,
    accuracy_by_source,
    calibration_curve,
    score_histogram,
    unsafe_detection,
)


class GatheredPairs(Metric):
    """Every scored pair of all batches and processes; a subclass's `compute` makes a figure of them.

    `update` takes the columns of ScoredPairs, each (N,). Exact and not a mean of means, at 24 bytes a pair.
    `compute` raises ValueError where there was no pair.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        chosen: Tensor,
        rejected: Tensor,
        rating: Tensor,
        source: Tensor,
        chosen_safe: Tensor,
        rejected_safe: Tensor,
    ) -> None:
        columns = (chosen, rejected, rating, source, chosen_safe, rejected_safe)
        self.rows.append(torch.stack([column.float() for column in columns], dim=1))

    def compute(self) -> Any:
        """ScoredPairs on the CPU."""
        if not len(self.rows):
            raise ValueError("no scored pair to make figures of; is the validation set empty?")
        chosen, rejected, rating, source, *safe = dim_zero_cat(self.rows).cpu().unbind(1)
        return ScoredPairs(chosen, rejected, rating.long(), source.long(), *safe)


class AccuracyByRating(GatheredPairs):
    """Llama 2 table 8."""

    def compute(self) -> Accuracy:
        pairs = super().compute()
        return accuracy_by_rating(pairs.chosen, pairs.rejected, pairs.rating)


class AccuracyBySource(GatheredPairs):
    """Llama 2 tables 7 and 8; `names` are those of the sources, as the data module has them."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = names

    def compute(self) -> dict[str, Accuracy]:
        pairs = super().compute()
        unnamed = range(len(self.names), int(pairs.source.max()) + 1)
        names = [*self.names, *(f"source_{number}" for number in unnamed)]
        return accuracy_by_source(pairs.chosen, pairs.rejected, pairs.rating, pairs.source, names)


class AccuracyBySafety(GatheredPairs):
    """Llama 2 table 29, its three bins."""

    def compute(self) -> dict[str, float | None]:
        pairs = super().compute()
        return accuracy_by_safety(pairs.chosen, pairs.rejected, pairs.chosen_safe, pairs.rejected_safe)


class UnsafeRecall(GatheredPairs):
    """Llama 2 table 29: at score 0.5."""

    def compute(self) -> UnsafeDetection:
        pairs = super().compute()
        is_safe = torch.cat([pairs.chosen_safe, pairs.rejected_safe])
        return unsafe_detection(torch.cat([pairs.chosen, pairs.rejected]), is_safe)


class Calibration(GatheredPairs):
    """How sure the model is against how often it is right."""

    def compute(self) -> list[CalibrationBin]:
        pairs = super().compute()
        return calibration_curve(pairs.chosen, pairs.rejected)


class ScoreHistogram(GatheredPairs):
    """Llama 2 fig. 27: sigmoid scores of all answers, in twentieths."""

    def compute(self) -> dict[str, list[float]]:
        pairs = super().compute()
        return score_histogram(torch.cat([pairs.chosen, pairs.rejected]), bins=20, scale="sigmoid")
