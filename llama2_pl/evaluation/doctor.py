"""What is wrong with a PPO iteration, named in words: numbers in, findings out.

`callbacks.PPODoctor` measures the numbers. A number that is not known is absent; one that is NaN is broken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Severity = Literal["warning", "fatal"]


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        name: of the rule; docs/doctor.md has a row for each.
        severity: "fatal": a bug, or a run that cannot recover; "warning": for a person to look at.
        value: what was measured.
        threshold: what it had to stay within.
        words: what it means and what to do.
    """

    name: str
    severity: Severity
    value: float
    threshold: float
    words: str


@dataclass(frozen=True)
class Limits:
    """Where healthy ends. All are our choice, the paper names none; those that are None depend on the precision.

    Args:
        ratio: of the first minibatch's mean probability ratio from 1. Nothing has been updated yet, so only rounding
            is left: 1e-5 in fp32, else 1e-3.
        ratio_max: of that minibatch's largest ratio from 1; None: a hundred times the limit of the mean, since one
            token's rounding does not average out.
        sampler_gap: mean |log-probability at sampling - log-probability in training| of a token, both at
            temperature 1. Cached decoding rounds differently: 1e-3 in fp32; 0.1 else, ten times what we saw in bf16.
        start_kl: KL per token in the first iteration, when policy and reference are the same network: rounding.
        noise: standard errors. Batches are many, and 5 happen by chance in fewer than one of a million.
        kl: nats per answer. An answer e^30 times likelier than at the start is like none of those rated.
        clip_fraction: share of tokens outside 1 +- clip. Usual are a few per cent; above 0.3 steps are too large.
        value_loss: WHITEN gives the reward a standard deviation of 1, so that 10 is an error of 4.5 of them.
        value_explosion: as value_loss, an error of 14 standard deviations.
        explained_variance: below 0 the value network is worse than a constant.
        value_warmup: iterations in which it may be, for it starts with another model's head.
        entropy_share: of the entropy per token at the start: a fifth leaves little to explore.
        eos_rate: share of answers that end by EOS.
        length_drift: factor by which answers became longer or shorter since the start.
        repeated_text: share of an answer's 4-grams that it has had before: half of it is said twice.
        whitening: of the rewards' mean from 0 and standard deviation from 1, apart from rounding nothing.
        flat_reward: standard deviation of the scores; below it WHITEN enlarges rounding.
        looks_unsafe: share of untagged prompts whose answer the safety model scores below the threshold.
        goodhart: standard deviations (of the start) by which the reward may have risen more than a judge that is
            not trained against: one is a typical answer now scored as the best sixth was.
        repeats: log of the chance that sampling drew the whole batch again.
    """

    ratio: float | None = None
    ratio_max: float | None = None
    sampler_gap: float | None = None
    start_kl: float = 1e-3
    noise: float = 5.0
    kl: float = 30.0
    clip_fraction: float = 0.3
    value_loss: float = 10.0
    value_explosion: float = 100.0
    explained_variance: float = 0.0
    value_warmup: int = 10
    entropy_share: float = 0.2
    eos_rate: float = 0.5
    length_drift: float = 2.0
    repeated_text: float = 0.5
    whitening: float = 0.05
    flat_reward: float = 1e-3
    looks_unsafe: float = 0.5
    goodhart: float = 1.0
    repeats: float = -20.0

    def settled(self, full_precision: bool) -> Limits:
        """With those that depend on the precision filled in."""
        ratio = self.ratio if self.ratio is not None else (1e-5 if full_precision else 1e-3)
        gap = 1e-3 if full_precision else 0.1
        return replace(
            self,
            ratio=ratio,
            ratio_max=100 * ratio if self.ratio_max is None else self.ratio_max,
            sampler_gap=gap if self.sampler_gap is None else self.sampler_gap,
        )


class Rule(NamedTuple):
    """`number` must not lie above, or below, a limit: a field of `Limits`, negated after "-", or a constant."""

    name: str
    severity: Severity
    number: str
    side: Literal["above", "below"]
    limit: str | float
    meaning: str
    advice: str

    def threshold(self, limits: Limits) -> float:
        """The limit as a number."""
        if not isinstance(self.limit, str):
            return self.limit
        value = getattr(limits, self.limit.removeprefix("-"))
        return -value if self.limit.startswith("-") else value


RULES = (
    Rule(
        "shifted_mask", "fatal", "mask_errors", "above", 0.0,
        "of {value:.0%} of the answers other tokens count than those after the prompt up to the last one",
        "build the mask from the prompt's length and the answer's, EOS included, and shift nowhere but in objectives",
    ),
    Rule(
        "ignored_eos", "fatal", "eos_errors", "above", 0.0,
        "{value:.0%} of the answers go on after EOS, or are marked finished without one, or the other way round",
        "sample with the eos_id of the tokenizer that wrote the prompts, and cut answers behind it",
    ),
    Rule(
        "doubled_bos", "fatal", "doubled_bos", "above", 0.0,
        "{value:.0%} of the prompts hold BOS twice in a row, which no network was trained on",
        "let encode_prompt alone add it, and encode no text that already holds it",
    ),
    Rule(
        "missing_bos", "warning", "missing_bos", "above", 0.0,
        "{value:.0%} of the prompts do not start with BOS, as all training rows do",
        "encode prompts by encode_prompt",
    ),
    Rule(
        "wrong_reference", "fatal", "start_kl", "above", "start_kl",
        "before any update the KL to the reference is {value:.3g} nats per token, and must be 0",
        "load policy and reference from one checkpoint, and read both at one temperature and in one precision",
    ),
    Rule(
        "negative_kl", "warning", "kl_in_errors", "below", "-noise",
        "the KL is negative by {value:.1f} standard errors, which the policy's own answers cannot show",
        "look for swapped policy and reference, or answers that this policy did not sample",
    ),
    Rule(
        "flipped_kl", "fatal", "penalty_slope", "below", 0.0,
        "the reward of a token rises with its KL (slope {value:.3g}): distance from the reference is paid for",
        "subtract beta * (log p - log p_0); look for a swapped difference",
    ),
    Rule(
        "large_kl", "warning", "kl", "above", "kl",
        "answers are {value:.3g} nats away from the starting policy, where the reward model has seen nothing",
        "raise beta, lower lr, or keep an earlier checkpoint",
    ),
    Rule(
        "ratio_not_one", "fatal", "ratio_error", "above", "ratio",
        "the first minibatch's mean probability ratio is off 1 by {value:.3g} before any update",
        "take old log-probabilities from the training pass, not from the sampler: same mask, temperature and precision",
    ),
    Rule(
        "scattered_ratio", "warning", "ratio_max_error", "above", "ratio_max",
        "the first minibatch has a token whose probability ratio is off 1 by {value:.3g} before any update",
        "look for dropout, a network in another mode, or log-probabilities in another precision",
    ),
    Rule(
        "stale_rollouts", "fatal", "sampler_gap", "above", "sampler_gap",
        "the log-probabilities of sampling and of training differ by {value:.3g} per token: another policy sampled",
        "sample inside the iteration that learns from it, with the current weights; drop cached casts and old buffers",
    ),
    Rule(
        "foreign_prompts", "fatal", "prompt_errors", "above", 0.0,
        "{value:.0%} of the rows start with another prompt than the batch's: answers of an earlier iteration",
        "sample inside the iteration that learns from it, for the prompts of its own batch, and keep no buffer",
    ),
    Rule(
        "repeated_rollouts", "fatal", "repeat_logprob", "below", "repeats",
        "the whole batch is that of the iteration before; drawn again it has a chance of e^{value:.0f}",
        "sample anew in each iteration, with a generator that depends on its number",
    ),
    Rule(
        "flipped_reward", "fatal", "reward_agreement", "below", 0.0,
        "the reward learned from falls where the reward model's score rises (correlation {value:.2f})",
        "look for a minus sign between the score and WHITEN, or a loss taken for a score",
    ),
    Rule(
        "wrong_branch", "fatal", "branch_errors", "above", 0.0,
        "{value:.0%} of the answers have the other model's score than R_c says",
        "R_c is the safety model's on tagged prompts and where it scores below the threshold, else helpfulness",
    ),
    Rule(
        "unwhitened_reward", "warning", "whitening_error", "above", "whitening",
        "the rewards' mean or standard deviation is off 0 and 1 by {value:.3g}",
        "apply WHITEN over the whole batch, of all ranks; otherwise beta means something else in each iteration",
    ),
    Rule(
        "flat_reward", "warning", "score_sd", "below", "flat_reward",
        "all answers score alike (standard deviation {value:.2g}): there is nothing to learn from",
        "check that the reward model is the trained one, and that answers differ",
    ),
    Rule(
        "exploded_value_loss", "fatal", "value_loss", "above", "value_explosion",
        "the value loss is {value:.3g}; its gradient takes all of the shared clipping and the policy learns nothing",
        "lower value_lr or value_coefficient, keep value_clip, and go on from an earlier checkpoint",
    ),
    Rule(
        "high_value_loss", "warning", "value_loss", "above", "value_loss",
        "the value loss is {value:.3g} where rewards have a standard deviation of 1",
        "lower value_lr or value_coefficient, or start with another value_init",
    ),
    Rule(
        "useless_value", "warning", "explained_variance", "below", "explained_variance",
        "the value network explains {value:.2f} of the returns' variance: a constant would do better",
        "raise value_lr or epochs, or start with another value_init",
    ),
    Rule(
        "many_clipped", "warning", "clip_fraction", "above", "clip_fraction",
        "{value:.0%} of the tokens are clipped: minibatches move the policy too far for one batch of answers",
        "lower lr or epochs",
    ),
    Rule(
        "entropy_collapse", "warning", "entropy_share", "below", "entropy_share",
        "the entropy per token is {value:.0%} of that at the start: answers are nearly fixed",
        "raise beta, lower lr, and read the answers",
    ),
    Rule(
        "few_eos", "warning", "eos_rate", "below", "eos_rate",
        "{value:.0%} of the answers end by EOS; the others are scored at a token where the reward model never learned",
        "raise max_new_tokens, keep truncated: penalise, and check that SFT trained on EOS",
    ),
    Rule(
        "length_drift", "warning", "length_drift", "above", "length_drift",
        "answers have become {value:.2g} times longer or shorter than at the start",
        "compare the reward model's accuracy on pairs of like length; raise beta",
    ),
    Rule(
        "repeated_text", "warning", "repeated_text", "above", "repeated_text",
        "{value:.0%} of the answers' 4-grams are repeats",
        "rate some of these answers and train the reward model on them; raise beta; keep an earlier checkpoint",
    ),
    Rule(
        "looks_unsafe", "warning", "looks_unsafe", "above", "looks_unsafe",
        "{value:.0%} of the answers to untagged prompts look unsafe, and only the safety model scores them",
        "check the safety model on helpful prompts, or lower safety_threshold",
    ),
    Rule(
        "general_disagrees", "warning", "general_agreement_in_errors", "below", "-noise",
        "the general reward model prefers the answers that the reward dislikes ({value:.1f} standard errors)",
        "check which of the two models was trained with chosen and rejected swapped",
    ),
    Rule(
        "gold_disagrees", "warning", "gold_agreement_in_errors", "below", "-noise",
        "the gold score is higher where the reward is lower ({value:.1f} standard errors)",
        "check that the reward model was not trained with chosen and rejected swapped",
    ),
    Rule(
        "goodhart_general", "warning", "goodhart_general_low", "above", "goodhart",
        "since the start the reward rose by at least {value:.2g} standard deviations more than the general model's",
        "keep an earlier checkpoint, and rate answers of this policy for the next reward model",
    ),
    Rule(
        "goodhart_gold", "warning", "goodhart_gold_low", "above", "goodhart",
        "since the start the reward rose by at least {value:.2g} standard deviations more than the gold score",
        "keep an earlier checkpoint, and rate answers of this policy for the next reward model",
    ),
)  # fmt: skip


def diagnose(numbers: Mapping[str, float], limits: Limits) -> list[Finding]:
    """Every rule whose number is known and beyond its limit, and one finding for what is no number; fatal ones first.

    limits: as `Limits.settled` gives them.
    """
    findings = [
        Finding(
            "not_finite", "fatal", value, math.inf,
            f"{name} is {value}; a network's output or a loss overflowed. Go on from an earlier checkpoint with a "
            "lower lr or value_lr, and in bf16 rather than fp16",
        )
        for name, value in numbers.items()
        if not math.isfinite(value)
    ]  # fmt: skip
    for rule in RULES:
        value, threshold = numbers.get(rule.number, math.nan), rule.threshold(limits)
        if value > threshold if rule.side == "above" else value < threshold:
            words = f"{rule.meaning.format(value=value)}. Way out: {rule.advice}"
            findings.append(Finding(rule.name, rule.severity, value, threshold, words))
    exploded = any(finding.name == "exploded_value_loss" for finding in findings)
    kept = [f for f in findings if not (exploded and f.name == "high_value_loss")]
    return sorted(kept, key=lambda finding: finding.severity)  # "fatal" < "warning"
