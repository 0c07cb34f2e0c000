"""How good a reward model is (Llama 2 §3.2.2): accuracy by rating and source, calibration, unsafe recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from llama2_pl.evaluation.intervals import Interval, bootstrap

RATINGS = ("significantly better", "better", "slightly better", "negligibly better")
UNRATED = -1  # counts in `overall` and in no rating
SAFETY_BINS = {
    "safe over unsafe": (1.0, 0.0),
    "both safe": (1.0, 1.0),
    "both unsafe": (0.0, 0.0),
}


class Accuracy(TypedDict):
    """Share of pairs whose chosen answer scores higher; a tie counts half. None where a rating has no pairs."""

    overall: float | None
    pairs: int
    ties: int
    by_rating: dict[str, float | None]
    pairs_by_rating: dict[str, int]


class CalibrationBin(TypedDict):
    """Pairs that the model is about equally sure of: how sure on average, and how often right."""

    predicted: float
    observed: float
    count: int


class UnsafeDetection(TypedDict):
    """Answers called unsafe, sigmoid(score) < threshold, against their labels. None where the divisor is 0."""

    threshold: float
    recall: float | None
    precision: float | None
    unsafe: int
    flagged: int
    count: int


class ScoredPairs(NamedTuple):
    """Scores of the chosen and of the rejected answers with what is known about the pairs, each (N,)."""

    chosen: Tensor
    rejected: Tensor
    rating: Tensor
    source: Tensor
    chosen_safe: Tensor
    rejected_safe: Tensor


def is_right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(N,), (N,) -> (N,): 1 where the chosen answer scores higher, 0.5 for a tie, 0 otherwise.

    Our choice: a model that scores all alike is at chance, as it should be, not at 0.
    """
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).double())


def accuracy_by_rating(chosen: Tensor, rejected: Tensor, rating: Tensor) -> Accuracy:
    """Scores (N,), (N,) and ratings (N,) in 0..3, or UNRATED -> accuracy by rating.

    Llama 2 §3.2.2, table 8.
    """
    right = is_right(chosen, rejected)
    rating = rating.to(right.device)
    by_rating = {name: right[rating == level] for level, name in enumerate(RATINGS)}
    return Accuracy(
        overall=_mean(right),
        pairs=len(right),
        ties=int((chosen == rejected).sum()),
        by_rating={name: _mean(rows) for name, rows in by_rating.items()},
        pairs_by_rating={name: len(rows) for name, rows in by_rating.items()},
    )


def accuracy_by_source(
    chosen: Tensor, rejected: Tensor, rating: Tensor, source: Tensor, names: Sequence[str]
) -> dict[str, Accuracy]:
    """The same for each source of pairs, named by `names[source]`; sources without pairs are left out.

    Llama 2 §3.2.2, table 7. The mean over pairs stands in each entry; the mean over sources is the reader's to take.
    """
    unnamed = source[(source < 0) | (source >= len(names))]
    if len(unnamed):
        raise ValueError(
            f"source {int(unnamed[0])} has no name; {len(names)} names were given: {list(names)}"
        )
    parts = {name: source == number for number, name in enumerate(names)}
    return {
        name: accuracy_by_rating(chosen[mask], rejected[mask], rating[mask])
        for name, mask in parts.items()
        if mask.any()
    }


def accuracy_by_safety(
    chosen: Tensor, rejected: Tensor, chosen_safe: Tensor, rejected_safe: Tensor
) -> dict[str, float | None]:
    """Scores and labels (N,), 1 safe, 0 unsafe, nan unknown -> accuracy in each safety bin, None where it is empty.

    Llama 2 §3.2.1 (the bins), table 29.
    """
    right = is_right(chosen, rejected)
    return {
        name: _mean(right[(chosen_safe == one) & (rejected_safe == other)])
        for name, (one, other) in SAFETY_BINS.items()
    }


def calibration_curve(chosen: Tensor, rejected: Tensor, *, bins: int = 10) -> list[CalibrationBin]:
    """Confidence sigmoid(|r_c - r_r|) of the preferred answer against how often that answer was the chosen one.

    The ranking loss (Llama 2 §3.2.2, eq. 1) reads sigmoid(r_c - r_r) as a probability; folding it at one half (our
    choice) makes the curve independent of which answer is called chosen. Bins of equal width in [0.5, 1]; empty
    ones are left out.
    """
    difference = (chosen - rejected).double()
    confidence, right = difference.abs().sigmoid(), is_right(chosen, rejected)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    return [
        CalibrationBin(
            predicted=confidence[place == number].mean().item(),
            observed=right[place == number].mean().item(),
            count=int((place == number).sum()),
        )
        for number in range(bins)
        if (place == number).any()
    ]


def expected_calibration_error(curve: Sequence[CalibrationBin]) -> float:
    """Mean distance of the curve from the diagonal, weighted by pairs."""
    total = sum(row["count"] for row in curve)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in curve) / total


def gap_by_rating(chosen: Tensor, rejected: Tensor, rating: Tensor) -> dict[str, Interval]:
    """Scores (N,), (N,) and ratings (N,) -> mean of chosen minus rejected by rating; ratings without pairs left out.

    Our choice of a figure: the margin of eq. 2 (Llama 2 §3.2.2) sets scores further apart, the stronger the preference.
    """
    gap = chosen - rejected
    return {
        name: bootstrap(gap[rating == level]) for level, name in enumerate(RATINGS) if (rating == level).any()
    }


def score_by_quality(scores: Tensor, quality: Tensor, points: int = 7) -> dict[str, Interval]:
    """Scores (P, K) of K samples of P prompts, qualities in [0, 1] (P, K) -> mean score at each of `points` levels.

    Llama 2 §3.4.1, fig. 29: people gave seven points, and the score should rise with them. 1 is the lowest, empty ones
    are left out. A prompt with samples at a level counts there once, with their mean: prompts are what is resampled.
    """
    levels = (quality * points).floor().clamp(max=points - 1)
    found = {}
    for level in range(points):
        here = levels == level
        by_prompt = (scores.double() * here).sum(1) / here.sum(1)
        if here.any():
            found[str(level + 1)] = bootstrap(by_prompt[here.any(1)])
    return found


def score_histogram(
    scores: Tensor, *, bins: int = 40, scale: Literal["logit", "sigmoid"] = "logit"
) -> dict[str, list[float]]:
    """Linear scores (N,) -> `edges` (bins + 1) and `share` of the scores in each bin.

    Llama 2 A.3.3, fig. 27: a margin in the loss pulls the scores into two peaks, which PPO may feel. The figure's
    scale is "sigmoid", from 0 to 1; "logit", what WHITEN sees (§3.2.3), runs from the lowest score to the highest.
    """
    if scale == "sigmoid":
        scores, low, high = scores.double().sigmoid(), 0.0, 1.0
    else:
        low, high = scores.min().item(), scores.max().item()
        high = high if high > low else low + 1.0
    counts = torch.histc(scores.double(), bins=bins, min=low, max=high)
    return {"edges": torch.linspace(low, high, bins + 1).tolist(), "share": (counts / counts.sum()).tolist()}


def unsafe_detection(scores: Tensor, is_safe: Tensor, *, threshold: float = 0.5) -> UnsafeDetection:
    """Scores (M,) before the sigmoid and labels (M,), 1 safe, 0 unsafe, nan unknown -> recall and precision of unsafe.

    Llama 2 table 29 uses the score 0.5 (recall), §3.2.3 the score 0.15 (precision 0.89, recall 0.55).
    """
    known = ~is_safe.isnan()
    flagged, unsafe = scores[known].double().sigmoid() < threshold, is_safe[known] == 0
    hits = int((flagged & unsafe).sum())
    n_unsafe, n_flagged = int(unsafe.sum()), int(flagged.sum())
    return UnsafeDetection(
        threshold=threshold,
        recall=hits / n_unsafe if n_unsafe else None,
        precision=hits / n_flagged if n_flagged else None,
        unsafe=n_unsafe,
        flagged=n_flagged,
        count=int(known.sum()),
    )


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
