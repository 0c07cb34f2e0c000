"""Batched sampling with a KV cache: prompts in, a `Rollout` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llama2_pl.generation.batching import PADDING_ID, ContinuousBatch, PromptQueue, Sampled, SamplingParams
from llama2_pl.generation.decoder import Decoder
from llama2_pl.model.heads import LanguageModel


class Rollout(NamedTuple):
    """Sampled rows; row i * samples_per_prompt + k is sample k of prompt i.

    Attributes:
        tokens: (B, T) int64, prompt then response, right-padded with PADDING_ID.
        response_mask: (B, T) bool, True on generated tokens, EOS included.
        logprobs: (B, T) float32, log-probability of token t under the model at temperature 1, 0 outside the response.
        finished: (B,) bool, True where the row ended by EOS within the limit.
        lengths: (B,) int64, tokens of prompt + response.
    """

    tokens: Tensor
    response_mask: Tensor
    logprobs: Tensor
    finished: Tensor
    lengths: Tensor


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    samples_per_prompt: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    max_batch: int | None = None,
) -> Rollout:
    """Sample `samples_per_prompt` continuations of each prompt, in rows ordered prompt-major.

    Sampling as in Meta's generation code (Llama 2 §3.2.3, fig. 8 for temperatures): greedy at temperature 0,
    nucleus by top_p, stop at EOS. A row's randomness is its own row of uniforms drawn up front (our choice), so it
    does not depend on the other prompts, on when they end, or on max_batch.

    A number out of range, an empty prompt, and one that leaves no room for max_new_tokens in the model's context raise
    ValueError.

    Args:
        model: sampled on its device, in autocast's type inside autocast, otherwise in that of its weights.
        prompts: ids of each, BOS first; lengths may differ. `encode_prompt` makes them of a dialogue.
        max_new_tokens: most tokens of a response, EOS included.
        eos_id: the token that ends a response.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw among the fewest likeliest tokens whose probabilities add up to this; 1: among all.
        samples_per_prompt: responses to each prompt.
        generator: source of the uniforms; torch's global one when None. One per prompt: a prompt's samples then
            stay the same whichever prompts stand beside it.
        max_batch: most rows decoded together; whenever some have ended, others take their places. None: all at once.
    """
    _check(model, prompts, max_new_tokens, temperature, top_p, samples_per_prompt, max_batch)
    rows = len(prompts) * samples_per_prompt
    most = min(rows, max_batch or rows)
    uniforms = _uniforms(generator, len(prompts), samples_per_prompt, max_new_tokens)
    with _sampling(model) as dtype:
        decoder = Decoder(model, dtype, most)
        queue = PromptQueue(decoder, prompts, samples_per_prompt)
        params = SamplingParams(eos_id, temperature, top_p)
        sampled = ContinuousBatch(decoder, queue, uniforms.to(decoder.device), params, most).run()
    return _assemble(prompts, samples_per_prompt, sampled, eos_id)


def _uniforms(
    generator: torch.Generator | Sequence[torch.Generator] | None, prompts: int, samples: int, steps: int
) -> Tensor:
    """(prompts * samples, steps) in [0, 1); float32 also where the precision "bf16-true" makes bf16 the default."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.rand(prompts * samples, steps, generator=generator, device=device, dtype=torch.float32)
    if len(generator) != prompts:
        raise ValueError(
            f"{len(generator)} generators for {prompts} prompts; give one for all or one for each"
        )
    return torch.cat(
        [torch.rand(samples, steps, generator=g, device=g.device, dtype=torch.float32) for g in generator]
    )


def responses(rollout: Rollout) -> list[list[int]]:
    """The response ids of each row, without the EOS that ended it."""
    counts = rollout.response_mask.sum(1) - rollout.finished.long()
    starts = rollout.lengths - rollout.response_mask.sum(1)
    rows = zip(rollout.tokens.tolist(), starts.tolist(), counts.tolist(), strict=True)
    return [tokens[start : start + count] for tokens, start, count in rows]


def _check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    samples_per_prompt: int,
    max_batch: int | None,
) -> None:
    """One ValueError that names the argument, its value and the way out."""
    counts = {
        "max_new_tokens": max_new_tokens,
        "samples_per_prompt": samples_per_prompt,
        "max_batch": max_batch,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1]; 1 keeps every token")
    if not prompts:
        raise ValueError("no prompts to continue; give at least one list of ids")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {number} is empty; start it with BOS at least")
        if len(prompt) + max_new_tokens > model.config.max_seq_len:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens {max_new_tokens} that exceeds the "
                f"model's max_seq_len {model.config.max_seq_len}; shorten the prompt or lower max_new_tokens"
            )


@contextmanager
def _sampling(model: nn.Module) -> Iterator[torch.dtype | None]:
    """No gradients; the type to compute in: inside autocast its, otherwise (None) that of the weights.

    Autocast itself is off: the decoder casts each weight once, where autocast would look at every product's.
    no_grad rather than inference_mode: tensors made in inference mode cannot enter a later backward pass, and PPO
    trains on these.
    """
    device = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield dtype


def _assemble(
    prompts: Sequence[Sequence[int]], samples_per_prompt: int, sampled: Sampled, eos_id: int
) -> Rollout:
    """Put responses behind their prompts."""
    device, limit = sampled.ids.device, sampled.ids.shape[1]
    tensors = [
        torch.tensor(prompt, dtype=torch.int64) for prompt in prompts for _ in range(samples_per_prompt)
    ]
    starts = torch.tensor([len(tensor) for tensor in tensors], device=device)
    lengths = starts + sampled.counts
    width = int(lengths.max())
    tokens = torch.full((len(tensors), width), PADDING_ID, dtype=torch.int64, device=device)
    padded_prompts = pad_sequence(tensors, batch_first=True, padding_value=PADDING_ID).to(device)
    tokens[:, : padded_prompts.shape[1]] = padded_prompts
    columns = torch.arange(width, device=device)
    response_mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    counted = torch.arange(limit, device=device) < sampled.counts[:, None]
    tokens[response_mask] = sampled.ids[counted]  # both run row by row, in order of time
    logprobs = torch.zeros(tokens.shape, device=device, dtype=torch.float32)
    logprobs[response_mask] = sampled.logprobs[counted]
    last = sampled.ids.gather(1, sampled.counts[:, None] - 1).squeeze(1)
    return Rollout(tokens, response_mask, logprobs, last == eos_id, lengths)
