"""Losses of the reward models: ranking with a margin, and the safety auxiliary loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Margin = Literal["none", "small", "large"]

# Llama 2 Table 27: margin by rating 0 significantly better, 1 better, 2 slightly better,
# 3 negligibly better or unsure. The paper does not say which one its final models use.
MARGINS: dict[str, tuple[float, float, float, float]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
}


def margin_of_rating(rating: Tensor, kind: Margin) -> Tensor:
    """m(r): how far apart the two scores should be, by how clear the preference was.

    Llama 2 §3.2.2, Table 27. rating (N,) int 0..3, or -1, unrated, which has no margin -> (N,) fp32.
    """
    if kind not in MARGINS:
        raise ValueError(f"margin: {kind!r} is not a kind of margin; choose one of {', '.join(MARGINS)}")
    # No table is sent to the GPU, which the host would wait for.
    return torch.stack([margin * (rating == level) for level, margin in enumerate(MARGINS[kind])]).sum(0)


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Mean of -log sigmoid(r(x, y_c) - r(x, y_r) - m(r)).

    Llama 2 §3.2.2, eq. 1 (margin 0) and eq. 2. chosen (N,), rejected (N,), margin (N,) -> ().
    """
    return -F.logsigmoid(chosen.float() - rejected.float() - margin).mean()


def safety_auxiliary_loss(scores: Tensor, is_safe: Tensor) -> Tensor:
    """Mean over all rows of the binary cross-entropy of the score, read as a logit of "safe"; 0 for an unknown label.

    Llama 2 §3.2.2 and Table 29 name the loss without its formula; this form is our choice, because the
    paper measures unsafe recall at score 0.5, i.e. logit 0. It also anchors the offset that a pairwise
    loss leaves free, which the threshold 0.15 of §3.2.3 needs. A row without a label counts in the divisor (our
    choice): a label then weighs the same in whatever micro-batch and on whatever rank it stands, as a pair does.
    scores (R,), is_safe (R,) float: 1 safe, 0 unsafe, NaN unknown -> ().
    """
    known = ~is_safe.isnan()
    labels = is_safe.float().nan_to_num()  # not scores[known]: the host would wait for the number of labels
    losses = F.binary_cross_entropy_with_logits(scores.float(), labels, reduction="none")
    return losses.where(known, 0.0).mean()
