"""`llama2-pl rlhf judges`: how good a version's reward models are, and what its own batch of ratings taught them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.readers import PreferenceRow, read_preferences
from llama2_pl.evaluation.intervals import wilson
from llama2_pl.evaluation.judges import Judges, dialogue_ids, refuse_no_number
from llama2_pl.evaluation.reward import (
    UNRATED,
    ScoredPairs,
    accuracy_by_rating,
    accuracy_by_safety,
    accuracy_by_source,
    calibration_curve,
    expected_calibration_error,
    gap_by_rating,
    score_histogram,
    unsafe_detection,
)
from llama2_pl.evaluation.scoring import score_responses
from llama2_pl.files import write_json
from llama2_pl.model.heads import ScalarModel
from llama2_pl.rlhf.scores import load_judges
from llama2_pl.text.tokenizer import Tokenizer


def measure_judges(
    helpfulness_reward: str,
    safety_reward: str,
    tokenizer: str,
    out: str,
    helpful_pairs: Sequence[str] = (),
    safety_pairs: Sequence[str] = (),
    batch: dict[str, str] | None = None,
    before: dict[str, str] | None = None,
    hardware: Hardware = HARDWARE,
) -> None:
    """Accuracy on held-out pairs, and on those of the newest batch, with the reward models before it and after it.

    Llama 2 §3.2.2, tables 7, 8 and 29; §3.2.1: "reward model accuracy can quickly degrade if not exposed to this new
    sample distribution", which is the difference between the two.

    Args:
        helpfulness_reward: checkpoint of the newest helpfulness reward model.
        safety_reward: checkpoint of the newest safety reward model.
        tokenizer: tokenizer.model of both.
        out: the result file.
        helpful_pairs: held-out preference files for the helpfulness model, the same for all versions.
        safety_pairs: held-out preference files for the safety model, the same for all versions.
        batch: held-out pairs of the newest batch of ratings, files by "helpfulness" and "safety".
        before: checkpoints of the reward models that had not seen that batch, by "helpfulness" and "safety".
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware)
    results = reward_models(judges, helpful_pairs, safety_pairs)
    newest = {name: [path] for name, path in (batch or {}).items() if Path(path).stat().st_size}
    if newest:
        older = load_judges(before["helpfulness"], before["safety"], tokenizer, hardware) if before else None
        parts = {"before": older, "after": judges}
        results["batch"] = {
            name: _accuracy(reward_models(models, newest.get("helpfulness", ()), newest.get("safety", ())))
            for name, models in parts.items()
            if models is not None
        }
    write_json(Path(out), results)
    for name, row in results["reward_accuracy"].items():
        print(f"{name}: accuracy {row['overall']:.3f}{_newest(results, name)}")


def reward_models(
    judges: Judges, helpful_pairs: Sequence[str], safety_pairs: Sequence[str]
) -> dict[str, Any]:
    """Each model on its own test set and on every source of both (Llama 2 tables 7, 8); unsafe recall (table 29)."""
    models = judges.models()
    room = min(model.config.max_seq_len for model in models.values())
    tests = {
        name: pairs_that_fit(
            [row for path in files for row in read_preferences(path)], judges.tokenizer, room
        )
        for name, files in zip(models, (helpful_pairs, safety_pairs), strict=True)
    }
    sources = sorted({row.source for rows in tests.values() for row in rows})
    results: dict[str, Any] = {"reward_accuracy": {}, "reward_accuracy_by_source": {}}
    for name, model in models.items():
        scored = {
            test: score_preferences(model, rows, judges.tokenizer, sources)
            for test, rows in tests.items()
            if rows
        }
        if scored:
            everything = ScoredPairs(*(torch.cat(column) for column in zip(*scored.values(), strict=True)))
            by_source = accuracy_by_source(*everything[:4], sources)
            results["reward_accuracy_by_source"][name] = by_source
        if name in scored:
            results["reward_accuracy"][name] = _on_its_own(scored[name])
    return results | (_unsafe(scored["safety"]) if "safety" in scored else {})


def _on_its_own(pairs: ScoredPairs) -> dict[str, Any]:
    curve = calibration_curve(pairs.chosen, pairs.rejected)
    scores = torch.cat([pairs.chosen, pairs.rejected])
    return {
        **accuracy_by_rating(pairs.chosen, pairs.rejected, pairs.rating),
        "by_safety": accuracy_by_safety(pairs.chosen, pairs.rejected, pairs.chosen_safe, pairs.rejected_safe),
        "gap_by_rating": gap_by_rating(pairs.chosen, pairs.rejected, pairs.rating),
        "calibration": curve,
        "calibration_error": expected_calibration_error(curve),
        "histograms": {scale: score_histogram(scores, scale=scale) for scale in ("logit", "sigmoid")},
    }


def _unsafe(pairs: ScoredPairs) -> dict[str, Any]:
    is_safe = torch.cat([pairs.chosen_safe, pairs.rejected_safe])
    scores = torch.cat([pairs.chosen, pairs.rejected])
    half, low = (unsafe_detection(scores, is_safe, threshold=t) for t in (0.5, 0.15))
    if half["recall"] is None:
        return {}
    return {
        "unsafe_recall": wilson(half["recall"] * half["unsafe"], half["unsafe"]),
        "unsafe_detection": {"0.5": half, "0.15": low},
    }


def pairs_that_fit(pairs: Sequence[PreferenceRow], tokenizer: Tokenizer, room: int) -> list[PreferenceRow]:
    """The pairs whose two dialogues have at most `room` tokens each; says how many are longer."""
    kept = [
        row
        for row in pairs
        if all(len(dialogue_ids(row.prompt, text, tokenizer)) <= room for text in (row.chosen, row.rejected))
    ]
    if len(kept) < len(pairs):
        print(f"{len(pairs) - len(kept)} of {len(pairs)} pairs are longer than {room} tokens: left out")
    return kept


def score_preferences(
    model: ScalarModel, pairs: Sequence[PreferenceRow], tokenizer: Tokenizer, sources: Sequence[str]
) -> ScoredPairs:
    """The pairs scored; one without a rating is in no row of table 8, though it trains as slightly better."""
    chosen = [dialogue_ids(row.prompt, row.chosen, tokenizer) for row in pairs]
    rejected = [dialogue_ids(row.prompt, row.rejected, tokenizer) for row in pairs]
    scores = score_responses(model, chosen + rejected)
    refuse_no_number(scores, "the reward model", [row.prompt for row in [*pairs, *pairs]])
    first, second = scores.chunk(2)
    return ScoredPairs(
        chosen=first,
        rejected=second,
        rating=torch.tensor([UNRATED if row.rating is None else row.rating for row in pairs]),
        source=torch.tensor([sources.index(row.source) for row in pairs]),
        chosen_safe=_labels(row.chosen_safe for row in pairs),
        rejected_safe=_labels(row.rejected_safe for row in pairs),
    )


def _labels(safe: Iterable[bool | None]) -> Tensor:
    return torch.tensor([float("nan") if label is None else float(label) for label in safe])


def _accuracy(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each model on the batch's pairs of its own kind."""
    return {
        name: {key: row[key] for key in ("overall", "by_rating", "pairs")}
        for name, row in results["reward_accuracy"].items()
    }


def _newest(results: Mapping[str, Any], name: str) -> str:
    found = {when: rows[name]["overall"] for when, rows in results.get("batch", {}).items() if name in rows}
    parts = ", ".join(f"{when} it {value:.3f}" for when, value in found.items())
    return f"; on the newest batch {parts}" if parts else ""
