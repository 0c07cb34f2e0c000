"""One look at a policy on held-out prompts: reward, KL to where it started, length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llama2_pl.callbacks.rewards import Reward
from llama2_pl.data.readers.prompts import PromptRow, read_prompts
from llama2_pl.evaluation.answers import decode_responses
from llama2_pl.generation.sampler import Rollout, generate
from llama2_pl.model.heads import LanguageModel
from llama2_pl.objectives.language import predicting, token_logprobs_from_hidden
from llama2_pl.objectives.ppo import kl_estimate
from llama2_pl.objectives.reward import Truncated
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tokenizer import Tokenizer

SAMPLES_SHOWN = 16


class HeldOut(NamedTuple):
    """Means over the held-out prompts."""

    reward: float
    """Answers that were cut off count as `counted_rewards` says."""
    kl: float
    """Of an answer, in nats: the log-ratio to the starting policy, summed over the answer."""
    length: float
    """Tokens of an answer, EOS included."""
    finished: float
    """Share of answers that end with EOS."""
    samples: Sequence[list[str | float]] = ()
    """The first prompts with their answer and its reward, for a person to read."""

    def metrics(self) -> dict[str, float]:
        """The figures by their logged names."""
        return {f"held_out/{name}": value for name, value in self._asdict().items() if name != "samples"}


class Sampling(NamedTuple):
    """How held-out prompts are answered. Temperature and top_p of 1 keep the KL estimate unbiased."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    max_batch: int
    truncated: Truncated = "score"
    """What answers that were cut off count as; see `counted_rewards`."""


def held_out_rows(prompts: str | Path | Sequence[str], limit: int | None = None) -> list[PromptRow]:
    """The prompts of a file that `read_prompts` reads, or of a list of texts."""
    if isinstance(prompts, (str, Path)):
        rows = list(read_prompts(prompts))
    else:
        rows = [PromptRow(Dialog.of([("user", text)])) for text in prompts]
    if not rows:
        raise ValueError(f"prompts: no prompt in {prompts!r}; give some that the training does not see")
    return rows[:limit]


def fitting_prompts(
    rows: Sequence[PromptRow], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[PromptRow], list[list[int]]]:
    """Those rows whose prompt has at most `max_tokens` tokens, and their ids."""
    encoded = [(row, encode_prompt(row.prompt, tokenizer, tags="neutralise")) for row in rows]
    kept = [(row, ids) for row, ids in encoded if len(ids) <= max_tokens]
    return [row for row, _ in kept], [ids for _, ids in kept]


@torch.no_grad()
def look(
    policy: LanguageModel,
    reference: LanguageModel,
    rows: Sequence[PromptRow],
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    reward: Reward,
    how: Sampling,
) -> HeldOut:
    """Answer each prompt once and judge the answers. `prompts` are the ids of `rows`.

    Each look draws the same random numbers from a generator of its own, so that looks differ by the policy alone
    and training goes on as if there had been none.
    """
    rollout = generate(
        policy,
        prompts,
        max_new_tokens=how.max_new_tokens,
        eos_id=tokenizer.eos_id,
        temperature=how.temperature,
        top_p=how.top_p,
        generator=torch.Generator().manual_seed(how.seed),
        max_batch=how.max_batch,
    )
    answers = decode_responses(rollout, tokenizer)
    scores = torch.tensor(list(reward(rows, answers)), dtype=torch.float64)
    if len(scores) != len(rows):
        raise ValueError(f"reward gave {len(scores)} numbers for {len(rows)} prompts; give one for each")
    return HeldOut(
        reward=counted_rewards(scores, rollout.finished.cpu(), how.truncated).mean().item(),
        kl=answer_kl(policy, reference, rollout, how.max_batch).mean().item(),
        length=rollout.response_mask.sum(1).double().mean().item(),
        finished=rollout.finished.double().mean().item(),
        samples=[
            [row.prompt.messages[-1].content, text, score]
            for row, text, score in zip(rows[:SAMPLES_SHOWN], answers, scores.tolist(), strict=False)
        ],
    )


def counted_rewards(scores: Tensor, finished: Tensor, truncated: Truncated) -> Tensor:
    """(B,) scores as PPO counts them: those of answers that were cut off as they are, an sd lower, or not at all.

    Our choice, as in training: else the policy that is kept could be one for what its training takes off. Where all
    were cut off, "drop" leaves their scores.
    """
    if truncated == "penalise":
        return scores - (~finished) * scores.std(correction=0)
    return scores[finished] if truncated == "drop" and finished.any() else scores


def answer_kl(policy: LanguageModel, reference: LanguageModel, rollout: Rollout, max_batch: int) -> Tensor:
    """Log-ratio of each answer, summed over its tokens, (B,).

    Llama 2 §3.2.3's D_KL by the k1 estimate on the policy's own samples. Both networks read the answer in the same
    way (our choice), so that the KL of equal networks is 0 and not the rounding of the cached decoding.
    """
    ours, theirs = (logprobs(model, rollout, max_batch) for model in (policy, reference))
    return (kl_estimate(ours, theirs) * rollout.response_mask).sum(1)


def logprobs(model: LanguageModel, rollout: Rollout, max_batch: int) -> Tensor:
    """(B, T) log-probability of each response token at temperature 1."""
    was_training = model.training
    model.eval()
    try:
        parts = [
            token_logprobs_from_hidden(model.hidden(tokens, at=predicting(mask)), model.head, tokens, mask)[0]
            for tokens, mask in zip(
                rollout.tokens.split(max_batch), rollout.response_mask.split(max_batch), strict=True
            )
        ]
    finally:
        model.train(was_training)
    return torch.cat(parts)
