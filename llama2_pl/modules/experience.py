"""What PPO learns from: one iteration's answers with everything its losses need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llama2_pl.data.batches import Packing
from llama2_pl.data.unpadded import counted_lengths, on_device, pack_padded, read, widest
from llama2_pl.generation.sampler import Rollout
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules.policy import Scored
from llama2_pl.objectives.language import predicting, token_logprobs_from_hidden
from llama2_pl.objectives.ppo import values_before_tokens
from llama2_pl.objectives.reward import Truncated, whiten

OldLogprobs = Literal["recomputed", "sampler"]


class NetworkOutputs(NamedTuple):
    """What policy, reference and value network give for a rollout, before the updates; (B, T), 0 outside answers."""

    logprobs: Tensor
    reference: Tensor  # log-probabilities under the starting policy
    values: Tensor
    # Of the policy's own pass, None without one.
    entropy: Tensor | None
    # Log-probabilities at temperature 1, as the sampler notes them; nothing is learned from them.
    at_one: Tensor | None


class Experience(NamedTuple):
    """Rows of prompt, response, padding; (B, T). The losses count `mask`."""

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    rewards: Tensor  # of each token: the answer's at its last, minus beta KL on all
    packing: Packing | None = None  # how the rows are read without their padding

    def minibatches(self, groups: Sequence[Tensor]) -> Iterator[Experience]:
        """The rows of each group, without the columns that are padding in all of them, to be read packed.

        All are planned before the first is given, for the host waits for the lengths; no update does.
        """
        device, lengths, plans = self.tokens.device, counted_lengths(self.mask), []
        for group in groups:
            mine = lengths[group.numpy()]
            width = int(mine.max()) or self.tokens.shape[1]
            packing = pack_padded(mine, width, widest(width, device))
            plans.append((group.to(device), width, on_device(packing, device)))
        for index, width, plan in plans:
            columns: list[Any] = [column[index, :width] for column in self[:-1]]
            yield Experience(*columns, packing=plan)


class Iteration(NamedTuple):
    """All that one PPO iteration made, for callbacks that look at it."""

    number: int
    """From 0, over the whole run."""
    rollout: Rollout
    scored: Scored
    outputs: NetworkOutputs
    experience: Experience
    updates: list[dict[str, Tensor]]
    """What each minibatch logged, in order."""


def policy_logprobs(
    model: LanguageModel, tokens: Tensor, mask: Tensor, temperature: float, packed: Packing | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each response token under the distribution that is sampled from, and its entropy."""
    hidden = read(model.hidden, tokens, packed, predicting(mask))
    return token_logprobs_from_hidden(hidden, model.head, tokens, mask, temperature)


def state_values(model: ScalarModel, tokens: Tensor, mask: Tensor, packed: Packing | None = None) -> Tensor:
    """(B, T): the value of the state in which each response token is chosen."""
    return values_before_tokens(read(model, tokens, packed, predicting(mask)), mask)


@torch.no_grad()
def read_rollout(
    rollout: Rollout,
    policy: LanguageModel | None,
    reference: LanguageModel,
    value: ScalarModel,
    temperature: float,
    batch: int,
) -> NetworkOutputs:
    """Read the rollout once by each network, `batch` rows at a time and without their padding.

    Without a policy its log-probabilities are those that the sampler noted, at temperature 1. They come from cached
    decoding, whose rounding differs from that of training: the first ratio is then 1 and the first KL 0 only nearly.
    """
    parts, lengths, device = [], counted_lengths(rollout.response_mask), rollout.tokens.device
    width = rollout.tokens.shape[1]
    for start in range(0, len(rollout.tokens), batch):
        rows = slice(start, start + batch)
        tokens, mask = rollout.tokens[rows], rollout.response_mask[rows]
        packed = on_device(pack_padded(lengths[rows], width, widest(width, device)), device)
        own = rollout.logprobs[rows], None, None
        if policy is not None:
            own = policy_outputs(policy, tokens, mask, temperature, packed)
        reference_logprobs, _ = policy_logprobs(reference, tokens, mask, temperature, packed)
        values = state_values(value, tokens, mask, packed)
        parts.append(NetworkOutputs(own[0], reference_logprobs, values, *own[1:]))
    columns: Iterable[Any] = zip(*parts, strict=True)
    whole: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return NetworkOutputs(*whole)


def policy_outputs(
    policy: LanguageModel, tokens: Tensor, mask: Tensor, temperature: float, packed: Packing | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under the policy that sampled, its entropies, log-probabilities at temperature 1."""
    hidden = read(policy.hidden, tokens, packed, predicting(mask))
    logprobs, entropy = token_logprobs_from_hidden(hidden, policy.head, tokens, mask, temperature)
    if temperature == 1:
        return logprobs, entropy, logprobs
    return logprobs, entropy, token_logprobs_from_hidden(hidden, policy.head, tokens, mask)[0]


def counted_tokens(rollout: Rollout, truncated: Truncated) -> Tensor:
    """(B, T): the response tokens that the losses see; "drop" leaves out answers without EOS."""
    if truncated == "drop":
        return rollout.response_mask & rollout.finished[:, None]
    return rollout.response_mask


def answer_rewards(scores: Tensor, finished: Tensor, truncated: Truncated, total) -> Tensor:
    """WHITEN of the scores, with the treatment of answers that were cut off at the length limit.

    Llama 2 §3.2.3; the paper does not say what happens to them. Their last token is not the EOS at which the
    reward models learned to score. "score": taken as it is. "penalise": one standard deviation of the batch's
    scores is subtracted, so that ending is worth learning. "drop": not learned from.
    scores (B,), finished (B,) bool -> (B,).
    """
    whitened = whiten(scores, finished if truncated == "drop" else None, total=total)
    return whitened - (~finished).float() if truncated == "penalise" else whitened
