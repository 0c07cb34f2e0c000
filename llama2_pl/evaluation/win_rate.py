"""Which of two models is preferred: wins, ties and losses with intervals (Llama 2 §3.4.2, fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from llama2_pl.evaluation.intervals import bootstrap, wilson


class WinRate(TypedDict):
    """Model A against model B. `mean` counts a tie as half a win; its interval is a bootstrap over prompts.

    The Wilson interval stands beside it as a check: it takes a tie for half a win and half a loss, so with ties it
    is the wider one. Where all prompts came out alike it is the interval: resampled, they have no spread, and 20 wins
    of 20 would be [100 %, 100 %].
    """

    wins: int
    ties: int
    losses: int
    count: int
    mean: float
    low: float
    high: float
    wilson_low: float
    wilson_high: float


def win_rate(
    a: Sequence[float] | Tensor,
    b: Sequence[float] | Tensor,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Scores of A's and of B's answers to the same n prompts, by a judge that scores one answer at a time.

    (n,) for one answer each; (n, k) for k, and each of A's is compared with each of B's to the same prompt: less
    noise of sampling, and still n observations for the interval.

    Args:
        a: A's scores.
        b: B's, of the same shape; others raise ValueError.
        resamples: of the bootstrap; 2000 (our choice) settle the ends of the interval to about half a percent.
        seed: of the bootstrap.
    """
    left, right = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if left.shape != right.shape:
        raise ValueError(
            f"A has {left.numel()} scores and B {right.numel()}; score the answers of both to the same prompts"
        )
    difference = left - right if left.ndim == 1 else (left[:, :, None] - right[:, None, :]).flatten(1)
    outcomes = torch.where(difference == 0, 0.5, (difference > 0).double())
    return summarise(outcomes, resamples=resamples, seed=seed)


def summarise(outcomes: Tensor, *, resamples: int = 2000, seed: int = 0) -> WinRate:
    """1 for a win of A, 0.5 for a tie, 0 for a loss, (n,) or (n, comparisons of a prompt) -> counts and intervals."""
    by_prompt = outcomes if outcomes.ndim == 1 else outcomes.mean(1)
    interval = bootstrap(by_prompt, resamples=resamples, seed=seed)
    check = wilson(by_prompt.sum().item(), by_prompt.numel())
    if by_prompt.min() == by_prompt.max():
        interval = check
    return WinRate(
        wins=int((outcomes == 1).sum()),
        ties=int((outcomes == 0.5).sum()),
        losses=int((outcomes == 0).sum()),
        wilson_low=check["low"],
        wilson_high=check["high"],
        **interval,
    )
