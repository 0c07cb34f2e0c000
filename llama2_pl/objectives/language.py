"""Next-token loss and log-probabilities. The one place where targets are shifted.

Everywhere else position t of a mask, a log-probability or a value speaks about token t itself.
The network's output at t-1 predicts token t; only this file and `ppo.values_before_tokens` know that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # (..., D) -> (..., V), e.g. the model's nn.Linear

CHUNK = 2048  # positions per chunk: 2048 x 32,000 logits in fp32 are 250 MiB


def next_token_loss(logits: Tensor, tokens: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of the counted tokens, and how many they are.

    Llama 2 §2.2 (autoregressive objective), §3.1 (loss zeroed on prompt tokens).
    logits (B, T, V), tokens (B, T), loss_mask (B, T): True where the token is a target to be predicted.
    Token 0 has no prediction and never counts. Nothing counted gives (0, 0), not NaN.
    """
    targets, counted = tokens[:, 1:], loss_mask[:, 1:]
    predictions = logits[:, :-1][counted].float()  # (C, V)
    return F.cross_entropy(predictions, targets[counted], reduction="sum"), counted.sum()


def next_token_loss_from_hidden(
    hidden: Tensor, head: Head, tokens: Tensor, loss_mask: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`next_token_loss` without ever holding the (B, T, V) logits.

    Our choice: only positions that count pass through the head, `chunk` at a time, and the backward pass
    computes each chunk's logits again; with 32,000 words the fp32 logits are otherwise the largest tensor.
    hidden (B, T, D), tokens (B, T), loss_mask (B, T).
    """
    counted = loss_mask[:, 1:]
    rows, targets = hidden[:, :-1][counted], tokens[:, 1:][counted]  # (C, D), (C,)

    def chunk_loss(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), targets, reduction="sum")

    parts = _by_chunk(chunk_loss, rows, targets, chunk)
    return torch.stack(parts).sum(), counted.sum()


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token given those before it; 0 at position 0.

    logits (B, T, V), tokens (B, T) -> (B, T) fp32.
    """
    logprobs = F.log_softmax(logits[:, :-1].float(), dim=-1)
    chosen = logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return F.pad(chosen, (1, 0))


def token_logprobs_from_hidden(
    hidden: Tensor, head: Head, tokens: Tensor, mask: Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Log-probability of each counted token, and the entropy of the distribution it was drawn from.

    Our choice: 0 outside `mask`, so that the head runs on counted positions only. The entropy carries no
    gradient: the paper's objective has no entropy bonus, it is for the log.
    hidden (B, T, D), tokens (B, T), mask (B, T) -> two (B, T) fp32.
    """
    counted = mask[:, 1:]
    rows, targets = hidden[:, :-1][counted], tokens[:, 1:][counted]

    def chunk_logprobs(rows: Tensor, targets: Tensor) -> Tensor:
        logprobs = F.log_softmax(head(rows).float() / temperature, dim=-1)  # (c, V)
        chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
        fixed = logprobs.detach()
        return torch.stack([chosen, -(fixed.exp() * fixed).sum(-1)])  # (2, c)

    both = torch.cat(_by_chunk(chunk_logprobs, rows, targets, chunk), dim=1)
    zeros = torch.zeros(tokens.shape, dtype=torch.float32, device=hidden.device)
    where = F.pad(counted, (1, 0))
    return zeros.masked_scatter(where, both[0]), zeros.masked_scatter(where, both[1].detach())


def _by_chunk(
    function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, targets: Tensor, chunk: int
) -> list[Tensor]:
    """function on each chunk of rows; recomputed in the backward pass where there is more than one."""
    pieces = list(zip(rows.split(chunk), targets.split(chunk), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return [function(r, t) for r, t in pieces]
    return [
        checkpoint(function, r, t, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
        for r, t in pieces
    ]
