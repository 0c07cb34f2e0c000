"""The two reward models as judges of answers in words, combined as training combines them. Llama 2 §3.2.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llama2_pl.data.readers import PromptRow
from llama2_pl.evaluation.scoring import score_answers
from llama2_pl.model.heads import ScalarModel
from llama2_pl.objectives.reward import SAFETY_THRESHOLD, combined_reward
from llama2_pl.text.chat import Dialog, encode_dialog
from llama2_pl.text.tokenizer import Tokenizer


class Judges(NamedTuple):
    """The two reward models, and how an answer's dialogue becomes ids; safety None: helpfulness alone."""

    helpfulness: ScalarModel
    safety: ScalarModel | None
    tokenizer: Tokenizer
    safety_threshold: float = SAFETY_THRESHOLD

    def models(self) -> dict[str, ScalarModel]:
        """Those that are there, by name."""
        named = {"helpfulness": self.helpfulness, "safety": self.safety}
        return {name: model for name, model in named.items() if model is not None}

    def scores(self, prompts: Sequence[PromptRow], answers: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Helpfulness, safety and combined scores (R,), all linear; `answers` prompt-major, len(prompts) * K.

        Safety is NaN without a safety model. An answer that was cut off is judged as it stands, as if it had ended;
        one of the greatest length without the EOS that has no place. ValueError where a model's score is no number.
        """
        each = len(answers) // len(prompts)
        rows = [prompt for prompt in prompts for _ in range(each)]
        ids = [
            dialogue_ids(row.prompt, text, self.tokenizer) for row, text in zip(rows, answers, strict=True)
        ]
        found = {name: score_answers(model, ids) for name, model in self.models().items()}
        for name, column in found.items():
            refuse_no_number(column, f"the {name} reward model", [row.prompt for row in rows])
        helpful, safe = found["helpfulness"], found.get("safety")
        is_safety = torch.tensor([row.is_safety for row in rows])
        combined = combined_reward(safe, helpful, is_safety, self.safety_threshold).scores
        return helpful, torch.full_like(helpful, torch.nan) if safe is None else safe, combined


def refuse_no_number(scores: Tensor, judge: str, prompts: Sequence[Dialog]) -> None:
    """NaN compares as false with everything, so it would choose, win or lose without a word."""
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        asked = prompts[wrong[0]].messages[-1].content
        raise ValueError(
            f"{judge} gives {scores[wrong[0]].item()} to an answer to {asked[:80]!r}, and to {len(wrong)} of "
            f"{len(scores)} answers no finite score: its weights are broken, train it anew"
        )


def dialogue_ids(prompt: Dialog, text: str, tokenizer: Tokenizer) -> list[int]:
    """What a reward model reads of a prompt and an answer."""
    return encode_dialog(prompt.then("assistant", text), tokenizer, tags="neutralise").tokens
