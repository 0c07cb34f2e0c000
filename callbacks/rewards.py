"""What the callbacks take for a reward: any function of prompts and answers, or the two reward models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama2_pl.checkpoints.ours import load_reward_model
from llama2_pl.data.default.oracle import gold_score
from llama2_pl.data.readers import PromptRow, read_prompts
from llama2_pl.evaluation.judges import Judges
from llama2_pl.model.heads import ScalarModel
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.text.chat import Dialog
from llama2_pl.text.tokenizer import Tokenizer

Reward = Callable[[Sequence[PromptRow], Sequence[str]], Sequence[float]]
"""(prompts, one answer each) -> one number each; higher is better. A prompt is a `llama2_pl.data.readers.PromptRow`."""


class ModelReward:
    """The combined linear score of a helpfulness and, where there is one, a safety model.

    Llama 2 §3.2.3: the safety model's where the prompt is tagged or the answer looks unsafe, else helpfulness.

    Args:
        helpfulness: the reward model for helpfulness.
        safety: the reward model for safety; None: helpfulness alone.
        tokenizer: of both models.
        safety_threshold: below this sigmoid of the safety score an answer looks unsafe.
    """

    def __init__(
        self,
        helpfulness: ScalarModel,
        safety: ScalarModel | None,
        tokenizer: Tokenizer,
        safety_threshold: float = SAFETY_THRESHOLD,
    ) -> None:
        self.judges = Judges(helpfulness, safety, tokenizer, safety_threshold)

    def __call__(self, prompts: Sequence[PromptRow], answers: Sequence[str]) -> list[float]:
        return self.judges.scores(prompts, answers)[2].tolist()


class CheckpointReward(ModelReward):
    """The same from checkpoints of RewardModule; a config can name it.

    Args:
        helpfulness: checkpoint of the helpfulness reward model.
        tokenizer: path of a SentencePiece tokenizer.model.
        safety: checkpoint of the safety reward model; None: helpfulness alone.
        device: where the models lie.
        safety_threshold: below this safety score an answer counts as unsafe.
    """

    def __init__(
        self,
        helpfulness: str,
        tokenizer: str,
        safety: str | None = None,
        device: str = "cpu",
        safety_threshold: float = SAFETY_THRESHOLD,
    ) -> None:
        words = Tokenizer(tokenizer)
        super().__init__(
            load_reward_model(helpfulness, device, words).eval(),
            None if safety is None else load_reward_model(safety, device, words).eval(),
            words,
            safety_threshold,
        )


class OracleReward:
    """The gold score of the embedded data's oracle, for its own prompts; a config can name it.

    Args:
        prompts: the files of prompts with a `task`, as `llama2-pl data default` writes them.
    """

    def __init__(self, prompts: str | list[str]) -> None:
        self._tasks: dict[Dialog, dict] = {}
        for path in [prompts] if isinstance(prompts, str) else prompts:
            self._tasks |= {row.prompt: row.task for row in read_prompts(path, tasks="required") if row.task}

    def __call__(self, prompts: Sequence[PromptRow], answers: Sequence[str]) -> list[float]:
        unknown = next((row for row in prompts if row.prompt not in self._tasks), None)
        if unknown is not None:
            raise ValueError(f"OracleReward: no task for the prompt {unknown.prompt.messages[-1].content!r}")
        return [gold_score(self._tasks[row.prompt], text) for row, text in zip(prompts, answers, strict=True)]


def find_reward(
    reward: Reward | None,
    helpfulness_reward: str | None,
    safety_reward: str | None,
    tokenizer: Tokenizer,
    pl_module: Any,
) -> Reward | None:
    """The reward given as a function, or as checkpoints, or the module's own `rewards`; None where there is none.

    Reward models are combined at the module's `safety_threshold`, where it has one.
    """
    if reward is not None:
        return reward
    threshold = pl_module.hparams.get("safety_threshold", SAFETY_THRESHOLD)
    if helpfulness_reward is not None:
        device = str(pl_module.device)
        return CheckpointReward(helpfulness_reward, str(tokenizer.path), safety_reward, device, threshold)
    if (own := getattr(pl_module, "rewards", None)) is not None:
        return ModelReward(own.helpfulness, own.safety, tokenizer, threshold)
    return None


def check_reward(reward: Reward | None, helpfulness_reward: str | None, safety_reward: str | None) -> None:
    """Raise ValueError where a reward is given twice, or a safety model without a helpfulness model."""
    if reward is not None and (helpfulness_reward or safety_reward):
        raise ValueError("reward and helpfulness_reward or safety_reward are both given; give one of them")
    if safety_reward is not None and helpfulness_reward is None:
        raise ValueError(f"safety_reward is {safety_reward!r} without helpfulness_reward; give both")
