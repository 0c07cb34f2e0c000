"""Do raters agree beyond chance? Gwet's AC1 and AC2 (Llama 2 §3.4.2, §4.4)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

from llama2_pl.data.default.oracle import judge, rating_of
from llama2_pl.data.default.tasks import Task

Weights = Literal["identity", "linear", "quadratic"]


def agreement_weights(categories: int, kind: Weights) -> Tensor:
    """(Q, Q) credit for two ratings by how far apart they are: 1 on the diagonal, 0 for the two ends."""
    if categories < 2:
        raise ValueError(f"categories is {categories}; agreement needs at least 2")
    place = torch.arange(categories, dtype=torch.float64)
    distance = (place[:, None] - place).abs() / (categories - 1)
    weights = {"identity": (distance == 0).double(), "linear": 1 - distance, "quadratic": 1 - distance**2}
    if kind not in weights:
        raise ValueError(f"weights {kind!r}: choose one of {', '.join(weights)}")
    return weights[kind]


def gwet_ac(ratings: Tensor, categories: int, *, weights: Weights = "quadratic") -> float:
    """Ratings (items, raters) in 0..categories-1, -1 where a rater gave none -> AC2; AC1 with weights "identity".

    Llama 2 §3.4.2 reports AC2 on a 7-point scale without its weights; quadratic ones are our choice, usual for ordinal
    scales. Observed agreement is over items with two ratings or more; chance agreement over all items rated at all.
    """
    credit = agreement_weights(categories, weights)
    counts = torch.stack(
        [(ratings == category).sum(1) for category in range(categories)], dim=1
    ).double()  # (I, Q)
    raters = counts.sum(1)
    paired, rated = raters >= 2, raters >= 1
    if not paired.any():
        raise ValueError("no item has two ratings; agreement needs at least one that has")
    weighted = counts @ credit
    observed = ((counts * (weighted - 1)).sum(1) / (raters * (raters - 1)))[paired].mean()
    prevalence = (counts[rated] / raters[rated, None]).mean(0)
    spread = (prevalence * (1 - prevalence)).sum()
    chance = credit.sum() / (categories * (categories - 1)) * spread
    return ((observed - chance) / (1 - chance)).item()


class AnnotatorAgreement(TypedDict):
    """AC2 of two simulated annotators, and of one with the oracle's rating without noise, on `pairs` pairs."""

    two_annotators: float
    annotator_and_oracle: float
    pairs: int


def annotator_agreement(
    rated: Sequence[tuple[Task, str, str]], *, noise: float, seed: int = 0
) -> AnnotatorAgreement | None:
    """Tasks with two different answers each, rated by two annotators of independent noise; None for no pairs.

    Llama 2 §3.4.2 asks for it of people; here it says how good the ratings are that the reward models learn from.
    """
    if not rated:
        return None
    gaps = [judge(task, a).utility - judge(task, b).utility for task, a, b in rated]
    chance = random.Random(seed)
    levels = torch.tensor(
        [
            [signed_level(gap + error) for error in (chance.gauss(0, noise), chance.gauss(0, noise), 0.0)]
            for gap in gaps
        ]
    )
    return AnnotatorAgreement(
        two_annotators=gwet_ac(levels[:, :2], 8),
        annotator_and_oracle=gwet_ac(levels[:, 1:], 8),
        pairs=len(rated),
    )


def signed_level(gap: float) -> int:
    """0 where the second answer is significantly better .. 7 where the first is: four levels to a side, no tie."""
    rating = rating_of(gap)
    return 7 - rating if gap >= 0 else rating
