"""From the two reward models' scores to the one reward that PPO and rejection sampling maximise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SAFETY_THRESHOLD = 0.15  # Llama 2 §3.2.3: precision 0.89, recall 0.55 for unsafe responses
Truncated = Literal[
    "score", "penalise", "drop"
]  # what answers that were cut off at the length limit count as
LOGIT_LIMIT = 13.8  # LOGIT(1 - 1e-6): scores beyond it are indistinguishable after sigmoid in fp32


class CombinedReward(NamedTuple):
    scores: Tensor  # (B,) linear scores, before whitening
    from_safety: Tensor  # (B,) bool: True where the safety model's score was taken


def combined_reward(
    safety_logit: Tensor | None,
    helpfulness_logit: Tensor,
    is_safety: Tensor,
    threshold: float = SAFETY_THRESHOLD,
) -> CombinedReward:
    """LOGIT(R_c): the safety score where the prompt is tagged or the answer looks unsafe, else helpfulness.

    Llama 2 §3.2.3: R_c = R_s if IS_SAFETY(p) or R_s < 0.15 else R_h, with R in (0, 1); LOGIT undoes the
    sigmoid, so the linear score itself is passed on, clamped (our choice) to where LOGIT is finite.
    Without a safety model (None) every answer counts as safe.
    safety_logit (B,), helpfulness_logit (B,), is_safety (B,) bool -> two (B,).
    """
    scores, from_safety = helpfulness_logit.float(), torch.zeros_like(is_safety)
    if safety_logit is not None:
        from_safety = is_safety | (torch.sigmoid(safety_logit.float()) < threshold)
        scores = torch.where(from_safety, safety_logit.float(), scores)
    return CombinedReward(scores.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), from_safety)


def whiten(
    x: Tensor,
    mask: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = lambda partial_sum: partial_sum,
    eps: float = 1e-8,
) -> Tensor:
    """Mean 0 and standard deviation 1 over the counted elements.

    Llama 2 §3.2.3 (WHITEN). Over what it averages is our choice: the whole global batch of an iteration,
    so the reward stays comparable inside it. `total` turns this rank's sum into the sum over all ranks.
    Population standard deviation; a batch of one, or of equal scores, gives zeros.
    x, mask: same shape -> the shape of x.
    """
    counts = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = x.float()
    count = total(counts.sum().float()).clamp(min=1)
    mean = total((x * counts).sum()) / count
    variance = total(((x - mean).square() * counts).sum()) / count
    return (x - mean) * torch.rsqrt(variance + eps) * counts
