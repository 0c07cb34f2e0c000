"""What rejection sampling and PPO share: a policy that answers prompts, and frozen models that judge."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from llama2_pl.checkpoints.ours import load_reward_model
from llama2_pl.data.batches import PromptBatch
from llama2_pl.evaluation.scoring import score_passes, score_rows
from llama2_pl.generation.sampler import Rollout
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules.batch_type import BatchTypeModule
from llama2_pl.objectives.reward import combined_reward
from llama2_pl.text.tokenizer import Tokenizer


class RewardModels(NamedTuple):
    """Frozen. Not nn.Module children of the module that uses them, so its checkpoints do not hold them."""

    helpfulness: ScalarModel
    safety: ScalarModel | None

    def named(self) -> dict[str, ScalarModel]:
        """Those that are there, by the option that names their file."""
        named = {"helpfulness_reward": self.helpfulness, "safety_reward": self.safety}
        return {option: network for option, network in named.items() if network is not None}


class Scored(NamedTuple):
    """What `score` says of the answers, a row each, (B,).

    Attributes:
        scores: float32; what is learned from, or chosen by: the combined linear score, not whitened.
        helpfulness: float32; for the metrics.
        safety: float32; for the metrics; NaN without a safety model.
        from_safety: bool; the combined score is the safety model's.
    """

    scores: Tensor
    helpfulness: Tensor
    safety: Tensor
    from_safety: Tensor


class PolicyModule(BatchTypeModule):
    """Base of PPOModule and RejectionSamplingModule.

    Reads from its hyper-parameters: policy, policy_backbone, helpfulness_reward, safety_reward, tokenizer,
    safety_threshold, scoring_batch, max_new_tokens.
    """

    batch_type = PromptBatch
    policy: LanguageModel
    rewards: RewardModels | None = None

    def setup(self, stage: str) -> None:
        """Read the frozen models. They come from their files also on resume: checkpoints do not hold them."""
        if self.rewards is None:
            hp = self.hparams
            safety, words = hp["safety_reward"], self.find_tokenizer()
            self.rewards = RewardModels(
                self.frozen(load_reward_model(hp["helpfulness_reward"], tokenizer=words)),
                None if safety is None else self.frozen(load_reward_model(safety, tokenizer=words)),
            )
            self.tokenizer, self.eos_id = words, words.eos_id

    def find_tokenizer(self) -> Tokenizer:
        """That of the hyper-parameters, which must be that of the prompts."""
        tokenizer, prompts = Tokenizer(self.hparams["tokenizer"]), super().find_tokenizer()
        if prompts is not None and prompts.sha256 != tokenizer.sha256:
            raise ValueError(
                f"model.tokenizer {tokenizer.path} and data.tokenizer {prompts.path} are different tokenizers (SHA-256 "
                f"{tokenizer.sha256[:16]}… and {prompts.sha256[:16]}…): give one of them to both"
            )
        return tokenizer

    def on_fit_start(self) -> None:
        self.refuse_long_prompts()

    def on_predict_start(self) -> None:
        self.refuse_long_prompts()

    def refuse_long_prompts(self) -> None:
        """Before the first answer, where our data module knows its longest prompt: not after an hour of them."""
        assert self.rewards is not None
        longest = getattr(getattr(self.trainer, "datamodule", None), "longest", 0)
        readers = {"policy": self.policy, **self.rewards.named()}  # PPO's value starts from one of them
        name = min(readers, key=lambda option: readers[option].config.max_seq_len)
        context, new = readers[name].config.max_seq_len, self.hparams["max_new_tokens"]
        if longest + new > context:
            ways = {"set data.max_prompt_len": context - new, "lower max_new_tokens": context - longest}
            out = ", or ".join(f"{way} to at most {bound}" for way, bound in ways.items() if bound > 0)
            raise ValueError(
                f"the longest prompt has {longest} tokens; with max_new_tokens {new} that exceeds the max_seq_len "
                f"{context} of {name}; {out or 'lower both'}"
            )

    def score(self, rollout: Rollout, is_safety: Tensor) -> Scored:
        """R_c of each answer, not whitened. Llama 2 §3.2.3. is_safety (B,). Override it for a reward of your own."""
        assert self.rewards is not None
        hp = self.hparams
        return score_rollout(self.rewards, rollout, is_safety, hp["safety_threshold"], hp["scoring_batch"])

    def data_rank(self) -> int:
        """This rank among those that see different rows."""
        return (self.trainer.distributed_sampler_kwargs or {}).get("rank", 0)

    def data_ranks(self) -> int:
        """How many ranks see different rows."""
        return (self.trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)


@torch.no_grad()
def score_rollout(
    rewards: RewardModels, rollout: Rollout, is_safety: Tensor, threshold: float, batch: int
) -> Scored:
    """Score each row by both models, `batch` rows at a time, and combine. Llama 2 §3.2.3."""
    passes = score_passes(rollout.tokens, rollout.lengths, batch, rollout.tokens.device)
    helpfulness = score_rows(rewards.helpfulness, rollout.tokens, rollout.lengths, passes)
    safety = None
    if rewards.safety is not None:
        safety = score_rows(rewards.safety, rollout.tokens, rollout.lengths, passes)
    combined = combined_reward(safety, helpfulness, is_safety, threshold)
    known = torch.full_like(helpfulness, torch.nan) if safety is None else safety
    return Scored(combined.scores, helpfulness, known, combined.from_safety)


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on the numbers and on nothing else: draws repeat after a restart."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
