"""What models say on held-out prompts, judged: scores, win rates, the Goodhart gap and what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.checkpoints.ours import load_reward_model
from llama2_pl.data.default.oracle import gold_score
from llama2_pl.data.readers import PromptRow
from llama2_pl.evaluation.answers import Answers, answers
from llama2_pl.evaluation.intervals import Interval, bootstrap
from llama2_pl.evaluation.judges import Judges
from llama2_pl.evaluation.win_rate import win_rate
from llama2_pl.model.heads import LanguageModel
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.text.tokenizer import Tokenizer


def load_judges(
    helpfulness_reward: str,
    safety_reward: str,
    tokenizer: str,
    hardware: Hardware = HARDWARE,
    safety_threshold: float = SAFETY_THRESHOLD,
) -> Judges:
    """Both reward models from their checkpoints."""
    words, paths = Tokenizer(tokenizer), (helpfulness_reward, safety_reward)
    helpfulness, safety = (hardware.place(load_reward_model(path, tokenizer=words)) for path in paths)
    return Judges(helpfulness, safety, words, safety_threshold)


class Speaker(NamedTuple):
    """How models answer here: `speak(model, prompts, temperature, k)` gives k answers to each prompt, prompt-major."""

    tokenizer: Tokenizer
    max_new_tokens: int
    seed: int

    def __call__(
        self, model: LanguageModel, asked: Sequence[PromptRow], temperature: float, k: int = 1
    ) -> list[str]:
        return self.answers(model, asked, temperature, k).texts

    def answers(
        self, model: LanguageModel, asked: Sequence[PromptRow], temperature: float, k: int = 1
    ) -> Answers:
        """The same, with which of them ended by themselves."""
        return answers(
            model,
            self.tokenizer,
            [row.prompt for row in asked],
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            samples_per_prompt=k,
            seed=self.seed,
        )


class Heard(NamedTuple):
    """A model's k answers to each of P prompts, (P, k) each: linear scores, gold None where nobody knows it.

    finished: whether an answer ended by itself. One that was cut off is judged as it stands.
    """

    helpfulness: Tensor
    safety: Tensor
    reward: Tensor
    gold: Tensor | None
    finished: Tensor


def listen(
    model: LanguageModel, rows: Sequence[PromptRow], judges: Judges, speak: Speaker, each: int
) -> Heard:
    """Let a model answer each prompt `each` times at temperature 1, and score the answers."""
    answers = speak.answers(model, rows, 1.0, each)
    columns = judges.scores(rows, answers.texts)
    helpfulness, safety, reward = (column.view(len(rows), each) for column in columns)
    gold = None
    if all(row.task is not None for row in rows):
        repeated = [row for row in rows for _ in range(each)]
        gold = gold_scores(repeated, answers.texts).view(len(rows), each)
    return Heard(helpfulness, safety, reward, gold, torch.tensor(answers.finished).view(len(rows), each))


def gold_scores(rows: Sequence[PromptRow], answers: Sequence[str]) -> Tensor:
    """The oracle's score of each answer, (R,)."""
    return torch.tensor(
        [gold_score(row.task, text) for row, text in zip(rows, answers, strict=True) if row.task]
    )


def judged(heard: dict[str, Heard], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Scores of each model, and win rates of a pair's first over its second, under the names that the report knows."""
    results: dict[str, Any] = {
        "judged": {
            name: {
                "helpfulness": bootstrap(found.helpfulness.sigmoid().mean(1)),
                "safety": bootstrap(found.safety.sigmoid().mean(1)),
                "combined": bootstrap(found.reward.mean(1)),
            }
            for name, found in heard.items()
        },
        "finished": {name: found.finished.float().mean().item() for name, found in heard.items()},
        "judged_win_rate": {f"{a} vs {b}": win_rate(heard[a].reward, heard[b].reward) for a, b in pairs},
    }
    gold = {name: found.gold for name, found in heard.items() if found.gold is not None}
    if gold:
        results["gold"] = {name: bootstrap(scores.mean(1)) for name, scores in gold.items()}
        results["win_rate"] = {f"{a} vs {b}": win_rate(gold[a], gold[b]) for a, b in pairs}
    return results


def gold_by_kind(rows: Sequence[PromptRow], heard: dict[str, Heard]) -> dict[str, dict[str, float]]:
    """Each model's mean gold score by kind of task; nothing where nobody knows the truth."""
    kinds = [row.task["kind"] if row.task else "" for row in rows]
    masks = {kind: torch.tensor([other == kind for other in kinds]) for kind in sorted(set(kinds))}
    return {
        name: {kind: found.gold[mask].mean().item() for kind, mask in masks.items()}
        for name, found in heard.items()
        if found.gold is not None
    }


def forgetting(by_kind: Sequence[dict[str, float]]) -> list[float]:
    """For each version in order: how far it is below the best earlier one, the mean over the kinds of tasks.

    Llama 2 §3.2.3 saw regressions (rhyming) and gives no number. Our choice: the measure of continual learning
    (Chaudhry et al. 2018); a kind in which it is the best so far counts 0. Biased upwards: the means are of samples,
    the best of several noisy ones is too high, and falls count while rises do not; more so with more versions and fewer
    prompts. It is for arms with as many versions on the same prompts, not for a comparison with 0.
    """
    lost = []
    for number, now in enumerate(by_kind):
        falls = [
            max(0.0, max((old[kind] for old in by_kind[:number]), default=0.0) - now[kind]) for kind in now
        ]
        lost.append(sum(falls) / len(falls))
    return lost


def goodhart_gap(now: Heard, start: Heard) -> Interval | None:
    """How much more the reward rose than the gold score, both in standard deviations of the start's answers.

    Our choice of a scale on which both can be compared; above 0 the reward models are pleased with more than there is.
    """
    if now.gold is None or start.gold is None:
        return None
    rises = [
        (after.mean(1) - before.mean(1)) / before.std(correction=0).clamp(min=1e-6)
        for after, before in ((now.reward, start.reward), (now.gold, start.gold))
    ]
    return bootstrap(rises[0] - rises[1])


def means(found: Heard) -> dict[str, Interval]:
    """Mean reward, and gold score where it is known, with intervals over the prompts."""
    gold = {} if found.gold is None else {"gold": bootstrap(found.gold.mean(1))}
    return {"reward": bootstrap(found.reward.mean(1)), **gold}
