"""The losses of language models as torch has them, on all logits at once; the tests' second implementation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, tokens: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) -> sum of the cross-entropies of the counted tokens, and how many they are."""
    targets = tokens.masked_fill(~loss_mask, -100)[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, reduction="sum")
    return losses, loss_mask[:, 1:].sum()


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, T, V) -> (B, T): log-probability of each token given those before it; 0 at position 0."""
    return F.pad(-F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"), (1, 0))
