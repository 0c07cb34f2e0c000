"""How much the answers to one prompt differ: Self-BLEU against temperature (Llama 2 §5.1, fig. 21)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from llama2_pl.evaluation.intervals import Interval, bootstrap

SMOOTHING = 0.1  # matches credited where there are none (Chen and Cherry 2014, method 1): a zero would hide all orders


class Diversity(TypedDict):
    """Self-BLEU and the share of different word pairs, each within the answers to one prompt; means over prompts."""

    self_bleu: Interval
    distinct_2: Interval


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypothesis: Sequence[str], references: Sequence[Sequence[str]], *, max_n: int = 4) -> float:
    """BLEU of one text as words (Papineni et al. 2002): clipped n-gram precisions, brevity penalty, smoothing method 1.

    Our choice for texts shorter than max_n words: only the orders that they have.
    """
    if not hypothesis or not references:
        return 0.0
    orders = range(1, min(max_n, len(hypothesis)) + 1)
    logs = 0.0
    for n in orders:
        own = ngrams(hypothesis, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, n)
        logs += math.log(max((own & most).total(), SMOOTHING) / own.total())
    closest = min((len(reference) for reference in references), key=lambda r: (abs(r - len(hypothesis)), r))
    brevity = min(0.0, 1 - closest / len(hypothesis))
    return math.exp(brevity + logs / len(orders))


def self_bleu(answers: Sequence[str], *, max_n: int = 4) -> float:
    """Mean BLEU of each answer against the others to the same prompt: 1 when all are alike, near 0 when none are."""
    if len(answers) < 2:
        raise ValueError(
            f"self-BLEU compares answers with each other; {len(answers)} given, at least 2 needed"
        )
    words = [answer.split() for answer in answers]
    scores = [bleu(own, [*words[:i], *words[i + 1 :]], max_n=max_n) for i, own in enumerate(words)]
    return sum(scores) / len(scores)


def distinct_n(answers: Sequence[str], n: int = 2) -> float:
    """Share of different n-grams among all n-grams of the answers (Li et al. 2016); 0 when there are none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for answer in answers:
        counts += ngrams(answer.split(), n)
    return len(counts) / counts.total() if counts else 0.0


def diversity_by_temperature(spoken: Mapping[float, Sequence[str]], each: int) -> dict[str, Diversity]:
    """Answers by temperature, prompt-major, `each` to a prompt -> the points of Fig. 21 (Llama 2 §5.1)."""
    found = {}
    for temperature, answers in spoken.items():
        sets = [answers[start : start + each] for start in range(0, len(answers), each)]
        found[f"{temperature:g}"] = Diversity(
            self_bleu=bootstrap([self_bleu(texts) for texts in sets]),
            distinct_2=bootstrap([distinct_n(texts) for texts in sets]),
        )
    return found
