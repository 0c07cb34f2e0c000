"""PPO for a token-level policy: penalised rewards, advantages, clipped losses.

Alignment: whatever is "at t" is about token t. `logprobs[:, t]` is the log-probability of token t, and
`values[:, t]` the value of the state in which token t is chosen, i.e. before it is written.
Rows are prompt, response, padding; the response positions are contiguous (`response_mask`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PolicyStats(NamedTuple):
    """Scalars without gradient, for the log; the ratios of no token are 1."""

    ratio_mean: Tensor
    ratio_max: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor  # between the policy that sampled and the one being updated


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the counted elements, 0 where none counts. x, mask: same shape -> ()."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def values_before_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Of each token that mask (B, T) counts the value of the state before it, from a network that has read it; else 0.

    values (B, T), or (C,) at `language.predicting(mask)` alone -> (B, T). Position 0 has no state before it.
    """
    counted = mask[:, 1:]
    if values.dim() == 1:
        before = values.new_zeros(counted.shape).masked_scatter(counted, values)
    else:
        before = values[:, :-1] * counted
    return F.pad(before, (1, 0))


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Literal["k1", "k3"] = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from one sampled token.

    Llama 2 §3.2.3, the penalty of R. The estimator is our choice: k1 = log p - log p_0 is unbiased and
    sums to the sequence's log-ratio; k3 = r - 1 - log r with r = p_0 / p is never negative: for the log.
    logprobs (B, T), reference (B, T) -> (B, T).
    """
    log_ratio = logprobs - reference
    if estimator == "k1":
        return log_ratio
    return torch.expm1(-log_ratio) + log_ratio


def shape_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, beta: float) -> Tensor:
    """The score at the last response token, minus beta times the KL of each response token.

    Llama 2 §3.2.3: R(g | p) = R~_c(g | p) - beta * D_KL. A penalty per token is our choice (Stiennon et
    al. 2020); summed over the response it is the paper's. A row without response tokens gets no reward.
    scores (B,), kl (B, T), response_mask (B, T) -> (B, T).
    """
    follows = F.pad(response_mask[:, 1:], (0, 1))
    last = response_mask & ~follows
    return scores[:, None] * last - beta * kl * response_mask


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that the value network regresses on.

    Schulman et al. 2016, eq. 16; gamma 1 and lambda 0.95 are our choice, the paper is silent.
    The state after the last response token is worth 0. All (B, T); 0 outside response_mask.
    """
    values = values * response_mask
    next_values = F.pad(values[:, 1:], (0, 1))
    deltas = (rewards + gamma * next_values - values) * response_mask
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        running = (deltas[:, t] + gamma * lam * running) * response_mask[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, PolicyStats]:
    """Clipped surrogate, averaged over the response tokens.

    Llama 2 §3.2.3 (PPO, clip threshold 0.2); Schulman et al. 2017, eq. 7. All (B, T) -> ().
    """
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        stats = PolicyStats(
            ratio_mean=1 + masked_mean(ratio - 1, mask),
            ratio_max=torch.where(mask.any(), ratio.masked_fill(~mask, -torch.inf).max(), 1.0),
            clip_fraction=masked_mean(((ratio - 1).abs() > clip).float(), mask),
            approx_kl=masked_mean(kl_estimate(old_logprobs, logprobs, "k3"), mask),
        )
    return -masked_mean(surrogate, mask), stats


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2
) -> Tensor:
    """Half the squared error, the worse of the plain and the clipped prediction; None: no clipping.

    Not in the paper; our choice follows Schulman's PPO code (and InstructGPT). All (B, T) -> ().
    """
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.max(error, (near - returns).square())
    return 0.5 * masked_mean(error, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 perfect, 0 no better than a constant. (B, T) -> ()."""
    errors = _masked_variance(returns - values, mask)
    return 1 - errors / _masked_variance(returns, mask).clamp(min=1e-8)


def _masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
