"""How well a language model predicts held-out text (Llama 2 §2.2, fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypedDict

import torch

from llama2_pl.data.batches import Batch
from llama2_pl.model.heads import LanguageModel
from llama2_pl.objectives.language import next_token_loss_from_hidden, predicting


class Perplexity(TypedDict):
    """Mean cross-entropy in nats per counted token, its exponential, and how many tokens that rests on."""

    loss: float
    perplexity: float
    tokens: int


@torch.no_grad()
def perplexity(model: LanguageModel, batches: Iterable[Batch]) -> Perplexity:
    """Perplexity over all counted tokens of all batches: each token weighs the same, wherever it is packed."""
    device, was_training = next(model.parameters()).device, model.training
    total, count = 0.0, 0
    model.eval()
    try:
        for batch in batches:
            tokens, mask, documents = (None if part is None else part.to(device) for part in batch)
            assert tokens is not None and mask is not None
            hidden = model.hidden(tokens, document_ids=documents, at=predicting(mask))
            loss, counted = next_token_loss_from_hidden(hidden, model.head, tokens, mask)
            total, count = total + loss.item(), count + int(counted)
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError(
            "no counted token in these batches, so there is no perplexity; check the data and its loss_mask"
        )
    # exp overflows a float beyond 709 nats, which only a broken model reaches
    return Perplexity(loss=total / count, perplexity=math.exp(min(total / count, 700.0)), tokens=count)
