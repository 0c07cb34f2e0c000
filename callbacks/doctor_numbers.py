"""The numbers that the doctor looks at, each from one PPO iteration; `evaluation.doctor` says which are too large."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llama2_pl.generation.sampler import responses
from llama2_pl.objectives.ppo import explained_variance, kl_estimate, masked_mean
from llama2_pl.objectives.reward import combined_reward

Numbers = dict[str, float]


def prompt_numbers(prompts: Sequence[Sequence[int]], bos_id: int) -> Numbers:
    """Shares of the prompts that hold BOS twice in a row, and that do not start with it."""
    doubled = [any(a == b == bos_id for a, b in itertools.pairwise(ids)) for ids in prompts]
    return {"doubled_bos": _mean(doubled), "missing_bos": _mean(ids[0] != bos_id for ids in prompts)}


def rollout_numbers(rollout: Any, eos_id: int) -> Numbers:
    """Ends, length and repeats of the answers."""
    rows = zip(rollout.tokens.tolist(), rollout.response_mask.tolist(), strict=True)
    answers = [[token for token, counts in zip(*row, strict=True) if counts] for row in rows]
    ends = [bool(ids) and ids[-1] == eos_id for ids in answers]
    wrong = [
        eos_id in ids[:-1] or end != finished
        for ids, end, finished in zip(answers, ends, rollout.finished.tolist(), strict=True)
    ]
    numbers = {"eos_errors": _mean(wrong), "eos_rate": _mean(ends), "length": _mean(map(len, answers))}
    repeats = [share for ids in responses(rollout) if (share := repeated_share(ids)) is not None]
    return numbers | ({"repeated_text": _mean(repeats)} if repeats else {})


def prompt_errors(prompts: Sequence[Sequence[int]], rollout: Any) -> Numbers:
    """Share of the rows that do not start with their batch's prompt: a small step hides nothing from this."""
    rows = zip(prompts, rollout.tokens.tolist(), strict=True)
    return {"prompt_errors": _mean(row[: len(ids)] != list(ids) for ids, row in rows)}


def repeated_share(ids: Sequence[int], n: int = 4) -> float | None:
    """Share of an answer's n-grams that stood in it before; None where it has fewer than two."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None


def mask_numbers(prompts: Sequence[Sequence[int]], rollout: Any, mask: Tensor, truncated: str) -> Numbers:
    """Share of the answers of which other tokens are learned from than those between prompt and end."""
    at = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.tensor([len(ids) for ids in prompts], device=mask.device)
    expected = (at >= starts[:, None]) & (at < rollout.lengths[:, None])
    if truncated == "drop":
        expected &= rollout.finished[:, None]
    return {"mask_errors": (mask.bool() != expected).any(1).float().mean().item()}


def distance_numbers(iteration: Any, mask: Tensor) -> Numbers:
    """KL to the reference, how it is paid for, and the sampler's opinion of its own tokens."""
    outputs, shaped = iteration.outputs, iteration.experience.rewards
    kl = kl_estimate(outputs.logprobs, outputs.reference) * mask
    answers = kl.sum(1)
    gap = sampler_gap(iteration)
    numbers = {"kl": answers.mean().item(), "entropy": entropy(iteration), "sampler_gap": gap}
    if iteration.number == 0:
        start = masked_mean(kl.abs(), mask).item()
        # The sampler's own log-probabilities, where they are learned from, differ by this much from any others.
        numbers["start_kl"] = start if outputs.at_one is not None else max(0.0, start - gap)
    if (error := (answers.std() / math.sqrt(len(answers))).item()) > 1e-6:
        numbers["kl_in_errors"] = numbers["kl"] / error
    counted = iteration.experience.mask.bool() & mask
    inner = counted & ~last_tokens(counted)
    if inner.sum() > 1 and kl[inner].var() > 1e-12 and shaped[inner].abs().max() > 0:
        centred = kl[inner] - kl[inner].mean()
        numbers["penalty_slope"] = -((centred * shaped[inner]).sum() / centred.square().sum()).item()
    return numbers


def sampler_gap(iteration: Any) -> float:
    """How far a token's log-probability in sampling lies from that in training: the mean distance.

    Both at temperature 1, whatever the answers were sampled at. Where no pass before the updates read the answers:
    the root of the mean square in the first minibatch, whose KL is half of that square.
    """
    rollout, outputs = iteration.rollout, iteration.outputs
    if outputs.at_one is None:
        return math.sqrt(2 * max(0.0, iteration.updates[0]["approx_kl"].item()))
    return masked_mean((rollout.logprobs - outputs.at_one).abs(), rollout.response_mask).item()


def entropy(iteration: Any) -> float:
    """Per token, before the updates; during them where no pass before read the answers."""
    outputs = iteration.outputs
    if outputs.entropy is None:
        return _mean(step["entropy"].item() for step in iteration.updates)
    return masked_mean(outputs.entropy, iteration.rollout.response_mask).item()


def reward_numbers(
    iteration: Any, is_safety: Tensor, beta: float, truncated: str, threshold: float
) -> Numbers:
    """The branches of R_c, and what WHITEN made of the scores."""
    rollout, scored, experience = iteration.rollout, iteration.scored, iteration.experience
    numbers = branch_numbers(scored, is_safety.to(scored.scores.device), threshold)
    mask, finished = experience.mask.bool(), rollout.finished
    last = last_tokens(mask)
    kl = kl_estimate(iteration.outputs.logprobs, iteration.outputs.reference)
    whitened = ((experience.rewards + beta * kl * mask) * last).sum(1)
    if truncated == "penalise":
        whitened = whitened + (~finished).float()
    counted = whitened[finished] if truncated == "drop" else whitened
    numbers |= {"score_sd": scored.scores.std(correction=0).item(), "reward_count": float(len(counted))}
    numbers |= {"reward_sum": counted.sum().item(), "reward_squares": counted.square().sum().item()}
    agreement = correlation(whitened[finished], scored.scores[finished])
    return numbers | ({"reward_agreement": agreement} if agreement is not None else {})


def branch_numbers(scored: Any, is_safety: Tensor, threshold: float) -> Numbers:
    """Share of the answers that each branch of the piecewise reward scored (Llama 2 §3.2.3), and of wrong branches."""
    alone = scored.safety.isnan().all()  # helpfulness
    expected = combined_reward(None if alone else scored.safety, scored.helpfulness, is_safety, threshold)
    wrong = ~torch.isclose(scored.scores, expected.scores, atol=1e-4)
    if alone:
        return {"branch_errors": wrong.float().mean().item()}
    unsafe = expected.from_safety & ~is_safety
    numbers = {
        "branch_errors": wrong.float().mean().item(),
        "branch_tagged": is_safety.float().mean().item(),
        "branch_unsafe": unsafe.float().mean().item(),
        "branch_helpfulness": (~expected.from_safety).float().mean().item(),
    }
    if not is_safety.all():
        numbers["looks_unsafe"] = unsafe[~is_safety].float().mean().item()
    return numbers


def update_numbers(iteration: Any) -> Numbers:
    """What the minibatches logged: the first ratio must be 1, the losses stay finite."""
    first, updates, experience = iteration.updates[0], iteration.updates, iteration.experience
    ratios = {
        "ratio_error": abs(first["ratio_mean"].item() - 1),
        "ratio_max_error": abs(first["ratio_max"].item() - 1),
    }
    if iteration.outputs.at_one is None:  # 1 only nearly, as `sampler_gap` says
        ratios = {}
    return {
        **ratios,
        "clip_fraction": _mean(step["clip_fraction"].item() for step in updates),
        "approx_kl": _mean(step["approx_kl"].item() for step in updates),
        "policy_loss": _mean(step["policy_loss"].item() for step in updates),
        "value_loss": max(step["value_loss"].item() for step in updates),
        "explained_variance": explained_variance(
            experience.values, experience.returns, experience.mask
        ).item(),
    }


def judge_numbers(name: str, reward: Tensor, judge: Tensor, start: Mapping[str, float]) -> Numbers:
    """The Goodhart gap to a judge that nobody trains against (`name`: "general" or "gold").

    Both are measured in standard deviations of the first iteration's; the gap is how much more the reward rose, and
    `_low` its lower 95 % limit. `start`: `judge_start` of the first iteration.
    """
    numbers = {f"{name}_score": judge.mean().item()}
    agreement = correlation(reward, judge)
    if agreement is not None and len(reward) > 3:
        fisher = math.atanh(max(-0.999999, min(0.999999, agreement)))
        numbers |= {
            f"{name}_agreement": agreement,
            f"{name}_agreement_in_errors": fisher * math.sqrt(len(reward) - 3),
        }
    if start["reward_sd"] > 0 and start["judge_sd"] > 0:
        rise = (reward - start["reward"]) / start["reward_sd"] - (judge - start["judge"]) / start["judge_sd"]
        error = (rise.var(correction=0) / len(rise) + 2 * (1 - start["agreement"]) / start["count"]).sqrt()
        gap = rise.mean().item()
        numbers |= {f"goodhart_{name}": gap, f"goodhart_{name}_low": gap - 1.96 * error.item()}
    return numbers


def judge_start(reward: Tensor, judge: Tensor) -> Numbers:
    """What `judge_numbers` compares with: means, spreads and correlation at the first iteration."""
    return {
        "reward": reward.mean().item(),
        "reward_sd": reward.std(correction=0).item(),
        "judge": judge.mean().item(),
        "judge_sd": judge.std(correction=0).item(),
        "agreement": correlation(reward, judge) or 0.0,
        "count": float(len(reward)),
    }


def last_tokens(mask: Tensor) -> Tensor:
    """(B, T) bool: the last counted position of each row."""
    return mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's; None where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = (x.square().sum() * y.square().sum()).sqrt().item() if len(x) > 1 else 0.0
    return (x * y).sum().item() / scale if scale > 1e-12 else None


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan
