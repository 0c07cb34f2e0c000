"""`llama2-pl rlhf judges`: how good a version's reward models are, and what its own batch of ratings taught them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2_pl.files import write_json
from llama2_pl.rlhf.evaluate import reward_models
from llama2_pl.rlhf.hardware import HARDWARE, Hardware
from llama2_pl.rlhf.scores import load_judges


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

    Llama 2 §3.2.2, tables 7, 8 and 29; §3.2.3: "reward model accuracy can quickly degrade if not exposed to this new
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
