"""Batched sampling with a KV cache: prompts in, a `Rollout` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llama2_pl.model.cache import KVCache
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import gathered, tensor_parallel_ranks

PADDING_ID = 0  # any valid id: the model looks ids up before masks apply, so Meta's -1 would not do


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


class _Sampled(NamedTuple):
    """Responses alone: ids and log-probabilities (R, max_new_tokens), how many of them count (R,)."""

    ids: Tensor
    logprobs: Tensor
    counts: Tensor


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
    autocast_dtype: torch.dtype | None = None,
) -> Rollout:
    """Sample `samples_per_prompt` continuations of each prompt, in rows ordered prompt-major.

    Sampling as in Meta's generation code (Llama 2 §3.2.3, fig. 8 for temperatures): greedy at temperature 0,
    nucleus by top_p, stop at EOS. A row's randomness is its own row of uniforms drawn up front (our choice), so it
    does not depend on the other prompts, on when they end, or on max_batch.

    Args:
        max_new_tokens: most tokens of a response, EOS included.
        generator: source of the uniforms; torch's global one when None. One per prompt: a prompt's samples then
            stay the same whichever prompts stand beside it.
        max_batch: most rows decoded together; rows of like prompt length go together. None: all at once.
        autocast_dtype: compute in this type (torch.bfloat16); None leaves the caller's precision.
    """
    _check(model, prompts, max_new_tokens, temperature, top_p, samples_per_prompt, max_batch)
    device = next(model.parameters()).device
    rows = len(prompts) * samples_per_prompt
    uniforms = _uniforms(generator, len(prompts), samples_per_prompt, max_new_tokens).to(device)
    ids = torch.full((rows, max_new_tokens), PADDING_ID, dtype=torch.int64, device=device)
    sampled = _Sampled(
        ids, torch.zeros(ids.shape, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
    )
    with _ready_to_sample(model, device, autocast_dtype):
        for chunk in _chunks([len(prompt) for prompt in prompts], samples_per_prompt, max_batch):
            unique, row_of_prompt = torch.tensor(
                [row // samples_per_prompt for row in chunk]
            ).unique_consecutive(return_inverse=True)
            chunk_prompts = [prompts[i] for i in unique.tolist()]
            index = torch.tensor(chunk, device=device)
            part = _sample_rows(
                model, chunk_prompts, row_of_prompt.to(device), uniforms[index], eos_id, temperature, top_p
            )
            for whole, values in zip(sampled, part, strict=True):
                whole[index] = values
    return _assemble(prompts, samples_per_prompt, sampled, eos_id)


def _uniforms(
    generator: torch.Generator | Sequence[torch.Generator] | None, prompts: int, samples: int, steps: int
) -> Tensor:
    """(prompts * samples, steps) in [0, 1)."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.rand(prompts * samples, steps, generator=generator, device=device)
    if len(generator) != prompts:
        raise ValueError(
            f"{len(generator)} generators for {prompts} prompts; give one for all or one for each"
        )
    return torch.cat([torch.rand(samples, steps, generator=g, device=g.device) for g in generator])


def responses(rollout: Rollout) -> list[list[int]]:
    """The response ids of each row, without the EOS that ended it."""
    counts = rollout.response_mask.sum(1) - rollout.finished.long()
    starts = rollout.lengths - rollout.response_mask.sum(1)
    rows = zip(rollout.tokens.tolist(), starts.tolist(), counts.tolist(), strict=True)
    return [tokens[start : start + count] for tokens, start, count in rows]


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(B, V) -> (B, V): keep the likeliest tokens while the mass before them is at most top_p, renormalise.

    Meta's generation code: a token is dropped where cumsum - p > top_p, so the one that crosses top_p is kept.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered > top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def pick_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """(B, V) float32 logits, (B,) uniforms in [0, 1) -> (B,) token ids, by inverting the cumulative distribution."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits if temperature == 1 else logits / temperature).softmax(-1)
    if top_p < 1:
        probabilities = nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may carry u * total up to total itself, where no token lies: stay one step below.
    target = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


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
def _ready_to_sample(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """No gradients, evaluation mode and whole weights (put back afterwards), and the wanted precision.

    no_grad rather than inference_mode: tensors made in inference mode cannot enter a later backward pass, and PPO
    trains on these. The autocast cache is dropped because it holds weights as they were before the last optimizer
    step when the caller is inside autocast (a Lightning training_step with manual optimization is).
    """
    was_training = model.training
    torch.clear_autocast_cache()
    try:
        model.eval()
        with torch.no_grad(), gathered(model):
            if dtype is None:
                yield
            else:
                with torch.autocast(device.type, dtype):
                    yield
    finally:
        model.train(was_training)


def _chunks(prompt_lengths: list[int], samples_per_prompt: int, max_batch: int | None) -> list[list[int]]:
    """Row numbers by prompt length (so that little is padded), at most max_batch in each part."""
    rows = range(len(prompt_lengths) * samples_per_prompt)
    ordered = sorted(
        rows, key=lambda row: prompt_lengths[row // samples_per_prompt]
    )  # stable: samples stay together
    size = max_batch or len(ordered)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (P, T) that end in the same column, and how many of them are real, (P,)."""
    tensors = [torch.tensor(prompt, dtype=torch.int64) for prompt in prompts]
    tokens = pad_sequence(tensors, batch_first=True, padding_value=PADDING_ID, padding_side="left")
    return tokens.to(device), torch.tensor([len(prompt) for prompt in prompts], device=device)


def _cache_dtype(model: LanguageModel, device: torch.device) -> torch.dtype:
    """The type that keys and values come in: autocast's where it is on, otherwise the weights'."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(model.parameters()).dtype


class _Prefilled(NamedTuple):
    """R rows ready to decode: last hidden state (R, D), position of the next token (R,), usable keys (R, S), cache."""

    hidden: Tensor
    positions: Tensor
    key_mask: Tensor | None
    cache: KVCache


def _prefill(
    model: LanguageModel, prompts: list[Sequence[int]], row_of_prompt: Tensor, max_new_tokens: int
) -> _Prefilled:
    """Read each prompt once, then repeat what was read for each of its rows."""
    device = row_of_prompt.device
    tokens, lengths = _left_pad(prompts, device)
    width = tokens.shape[1]
    slots = torch.arange(width + max_new_tokens - 1, device=device)  # the last token sampled is never read
    first_slot = (width - lengths)[:, None]
    # Without padding no mask is needed, and attention may take its faster path.
    padded = len({len(prompt) for prompt in prompts}) > 1
    key_mask = slots >= first_slot if padded else None
    ranks = tensor_parallel_ranks(model)
    cache = KVCache(model.config, len(prompts), len(slots), _cache_dtype(model, device), device, ranks)
    positions = (slots[:width] - first_slot).clamp(min=0)
    hidden = model.hidden(tokens, positions=positions, key_mask=key_mask, cache=cache)[:, -1]
    cache = cache.select(row_of_prompt)
    key_mask = key_mask[row_of_prompt] if key_mask is not None else None
    return _Prefilled(hidden[row_of_prompt], lengths[row_of_prompt], key_mask, cache)


def _sample_rows(
    model: LanguageModel,
    prompts: list[Sequence[int]],
    row_of_prompt: Tensor,
    uniforms: Tensor,
    eos_id: int,
    temperature: float,
    top_p: float,
) -> _Sampled:
    """Decode R rows together; row r continues prompts[row_of_prompt[r]] with the randomness uniforms[r], (R, N)."""
    limit = uniforms.shape[1]
    hidden, positions, key_mask, cache = _prefill(model, prompts, row_of_prompt, limit)
    ids = torch.full(uniforms.shape, PADDING_ID, dtype=torch.int64, device=uniforms.device)
    logprobs, counts = torch.zeros_like(uniforms), torch.zeros_like(row_of_prompt)
    rows = torch.arange(len(row_of_prompt), device=uniforms.device)  # where each row still decoded is written
    alive = torch.ones_like(rows, dtype=torch.bool)
    for step in range(limit):
        logits = model.head(hidden).float()
        token = pick_tokens(logits, uniforms[rows, step], temperature, top_p)
        ids[rows, step] = token
        logprobs[rows, step] = logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(-1)
        counts[rows] += alive
        alive = alive & (token != eos_id)
        remaining = int(alive.sum())
        if remaining == 0 or step == limit - 1:
            break
        if (
            remaining <= len(rows) // 2
        ):  # fewer copies than every step, and never more than half the work wasted
            keep = alive.nonzero().squeeze(1)
            cache = cache.select(keep)
            rows, alive, token, positions = rows[keep], alive[keep], token[keep], positions[keep]
            key_mask = key_mask[keep] if key_mask is not None else None
        hidden = model.hidden(token[:, None], positions=positions[:, None], key_mask=key_mask, cache=cache)[
            :, -1
        ]
        positions = positions + 1
    return _Sampled(ids, logprobs, counts)


def _assemble(
    prompts: Sequence[Sequence[int]], samples_per_prompt: int, sampled: _Sampled, eos_id: int
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
    logprobs = torch.zeros(tokens.shape, device=device)
    logprobs[response_mask] = sampled.logprobs[counted]
    last = sampled.ids.gather(1, sampled.counts[:, None] - 1).squeeze(1)
    return Rollout(tokens, response_mask, logprobs, last == eos_id, lengths)
