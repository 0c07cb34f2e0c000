"""How likely a language model finds a text after another: what benchmarks with given answers are scored by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama2_pl.model.heads import LanguageModel

Ids = Sequence[int]


class Continuation(NamedTuple):
    """Log-probability of all its tokens together, and whether each of them was the likeliest."""

    logprob: float
    greedy: bool


@torch.no_grad()
def continuation_logprobs(
    model: LanguageModel, rows: Sequence[tuple[Ids, Ids]], *, max_tokens: int = 16384
) -> list[Continuation]:
    """(context, continuation) as ids -> a Continuation of each, in their order.

    What is too long for the model's context loses its beginning. Rows that read the same, as answers of one token to
    one question do, are read once.

    Args:
        model: read on its device and in its type, logits in fp32.
        rows: ids of both parts; neither is empty, contexts begin with BOS.
        max_tokens: about how many tokens, padding included, are read together.
    """
    room = model.config.max_seq_len
    readers: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(rows):
        if not context or not 0 < len(continuation) <= room:
            raise ValueError(
                f"row {number}: {len(context)} tokens and a continuation of {len(continuation)}; a context has at "
                f"least one token (BOS) and a continuation 1 to {room}, the model's max_seq_len"
            )
        readers.setdefault(tuple([*context, *continuation][-room - 1 : -1]), []).append(number)
    found: dict[int, Continuation] = {}
    for batch in _batches(sorted(readers, key=len, reverse=True), max_tokens):
        asked = [(place, number) for place, key in enumerate(batch) for number in readers[key]]
        found |= _read(model, batch, [(place, number, rows[number][1]) for place, number in asked])
    return [found[number] for number in range(len(rows))]


def _batches(longest_first: list[tuple[int, ...]], max_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    start = 0
    while start < len(longest_first):
        stop = start + max(1, max_tokens // len(longest_first[start]))
        yield longest_first[start:stop]
        start = stop


def _read(
    model: LanguageModel, inputs: list[tuple[int, ...]], asked: list[tuple[int, int, Ids]]
) -> dict[int, Continuation]:
    """inputs: ids that are read; asked: which of them, the row's number, its continuation, which ends a token later."""
    device = next(model.parameters()).device
    tokens = pad_sequence([torch.tensor(ids) for ids in inputs], batch_first=True).to(device)
    ends = [place * tokens.shape[1] + len(inputs[place]) for place, _, _ in asked]
    counts = [len(continuation) for _, _, continuation in asked]
    spans = [torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    targets = torch.tensor([token for _, _, continuation in asked for token in continuation], device=device)
    hidden = model.hidden(tokens, at=torch.cat(spans).to(device))
    parts = zip(hidden.split(1024), targets.split(1024), strict=True)  # never all logits at once
    logprobs, greedy = zip(*(_of_targets(model.head(rows), wanted) for rows, wanted in parts), strict=True)
    scored = torch.cat(logprobs).cpu().split(counts)
    best = torch.cat(greedy).cpu().split(counts)
    return {
        number: Continuation(logprob.sum().item(), bool(likeliest.all()))
        for (_, number, _), logprob, likeliest in zip(asked, scored, best, strict=True)
    }


def _of_targets(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V), (N,) -> log-probabilities (N,) fp32, and whether the target has the highest."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen - logits.logsumexp(1), logits.argmax(1) == targets
