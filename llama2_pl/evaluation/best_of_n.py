"""What the best of N samples is worth: maximum and median reward against N (Llama 2 §3.2.3, figs. 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypedDict

import torch
from torch import Tensor


class RewardAgainstN(TypedDict):
    """Expected maximum and median reward among n samples, averaged over prompts."""

    n: list[int]
    max: list[float]
    median: list[float]


class GoldOfBest(TypedDict):
    """Gold score of the sample that a reward model picks among n, and of the median sample."""

    n: int
    best: float
    median: float


def rank_weights(samples: int, n: int, rank: int) -> Tensor:
    """(K,) weights of the ascending order statistics of K samples in the rank-th smallest of a random n of them.

    The i-th smallest of K is the rank-th smallest of C(i-1, rank-1) * C(K-i, n-rank) of the C(K, n) subsets.
    Their exact mean needs no resampling and is an unbiased estimate for n fresh samples (our choice: the paper
    does not say how its curves were made).
    """
    if not 1 <= n <= samples:
        raise ValueError(f"n is {n} with {samples} samples per prompt; draw more samples or lower n")
    subsets = math.comb(samples, n)
    weights = [
        Fraction(math.comb(i - 1, rank - 1) * math.comb(samples - i, n - rank), subsets)
        for i in range(1, samples + 1)
    ]
    return torch.tensor([float(weight) for weight in weights], dtype=torch.float64)


def expected_max(scores: Tensor, n: int) -> Tensor:
    """(P, K) -> (P,): mean over all subsets of n samples of the subset's maximum."""
    return scores.double().sort(dim=1).values @ rank_weights(scores.shape[1], n, n)


def expected_median(scores: Tensor, n: int) -> Tensor:
    """(P, K) -> (P,): mean over all subsets of n samples of the subset's median (mean of the middle two for even n)."""
    samples = scores.shape[1]
    weights = (rank_weights(samples, n, (n + 1) // 2) + rank_weights(samples, n, n // 2 + 1)) / 2
    return scores.double().sort(dim=1).values @ weights


def expected_gold_of_best(reward: Tensor, gold: Tensor, n: int) -> Tensor:
    """(P, K), (P, K) -> (P,): gold score of the sample with the highest reward, averaged over all subsets of n.

    Equal rewards count as if the later sample were the higher one; samples come in random order, so this favours none.
    """
    order = reward.sort(dim=1, stable=True).indices
    return gold.double().gather(1, order) @ rank_weights(reward.shape[1], n, n)


def reward_against_n(scores: Tensor, ns: Sequence[int] | None = None) -> RewardAgainstN:
    """(P, K) scores of K samples for each of P prompts -> the two curves of Fig. 7.

    ns defaults to the powers of two up to K, and K itself.
    """
    samples = scores.shape[1]
    if ns is None:
        ns = sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})
    return RewardAgainstN(
        n=list(ns),
        max=[expected_max(scores, n).mean().item() for n in ns],
        median=[expected_median(scores, n).mean().item() for n in ns],
    )


def reward_by_temperature(
    scores: Mapping[float, Tensor], ns: Sequence[int] | None = None
) -> dict[str, RewardAgainstN]:
    """The curves of Fig. 8: one pair for each sampling temperature."""
    return {f"{temperature:g}": reward_against_n(rows, ns) for temperature, rows in scores.items()}


def reward_of_taken(scores: Tensor, may_be_taken: Tensor, n: int) -> float:
    """(P, K) scores, (P, K) bool -> expected reward of what rejection sampling takes of n samples, over all prompts.

    Our choice: a prompt of whose n samples none may be taken counts with its lowest score. Left out, it would reward a
    temperature at which hard prompts get no answer that ends; with its maximum, answers that nobody is trained on.
    """
    lowest = scores.min(dim=1, keepdim=True).values
    return expected_max(torch.where(may_be_taken, scores, lowest), n).mean().item()


def best_temperature(rewards: Mapping[str, float]) -> float:
    """The temperature whose taken answers have the highest reward; it moves with each version (§3.2.3)."""
    return float(max(rewards, key=lambda temperature: rewards[temperature]))


def gold_of_best(reward: Tensor, gold: Tensor, n: int) -> GoldOfBest:
    """Does the reward model's favourite among n please the gold judge more than the median sample does?"""
    best = expected_gold_of_best(reward, gold, n).mean().item()
    return GoldOfBest(n=n, best=best, median=expected_median(gold, n).mean().item())
