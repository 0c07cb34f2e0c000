"""Next-token loss and log-probabilities. The one place where targets are shifted.

Everywhere else position t of a mask, a log-probability or a value speaks about token t itself.
The network's output at t-1 predicts token t; only this file and `ppo.values_before_tokens` know that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # (..., D) -> (..., V), e.g. the model's nn.Linear

CHUNK = 1024  # positions per chunk at least: 1024 x 32,000 logits in bf16 are 63 MiB
CHUNK_LOGITS = 2**23  # more positions where so many logits are not exceeded: small vocabularies
IGNORED = -100  # as in torch.nn.functional.cross_entropy
CPU_SLICE = 2**19  # fp32 numbers of the softmax at a time on a CPU: 2 MiB stay in its cache


def next_token_loss_from_hidden(
    hidden: Tensor, head: Head, tokens: Tensor, loss_mask: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of the counted tokens, and how many they are; the (B, T, V) logits are never held.

    Llama 2 §2.2 (autoregressive objective), §3.1 (loss zeroed on prompt tokens). Our choice: only
    positions that count pass through the head, `chunk` at a time (None: as CHUNK and CHUNK_LOGITS say), and a chunk's
    gradient is taken while its logits are there; with 32,000 words the fp32 logits are otherwise the largest tensor.
    hidden (B, T, D), or (C, D) at `predicting(loss_mask)` alone; tokens (B, T); loss_mask (B, T), True where the token
    is a target to be predicted. Token 0 has no prediction and never counts. Nothing counted gives (0, 0), not NaN.
    """
    counted, chunk = loss_mask[:, 1:], chunk or _positions(head)
    rows, targets = _counted_rows(hidden, tokens, loss_mask)
    if torch.is_grad_enabled():
        weights = [p for p in head.parameters() if p.requires_grad] if isinstance(head, nn.Module) else []
        return _SummedLoss.apply(head, chunk, targets, rows, *weights), counted.sum()  # type: ignore[return-value]
    losses = [F.cross_entropy(head(r).float(), t, reduction="sum") for r, t in _chunks(rows, targets, chunk)]
    return torch.stack(losses).sum(), counted.sum()


def predicting(loss_mask: Tensor) -> Tensor | None:
    """Where in the flattened (B * T) the states are that predict counted tokens, (C,), for `Transformer(at=...)`.

    None where all states are to be given: where all tokens count, and on a GPU, where the host would have to wait for
    their number.
    """
    counted = loss_mask[:, 1:]
    if counted.device.type != "cpu" or counted.all():
        return None
    return F.pad(counted, (0, 1)).flatten().nonzero().flatten()


def _counted_rows(hidden: Tensor, tokens: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states (C, D) that predict counted tokens and those tokens (C,).

    Where `predicting` gives no places, all states, and IGNORED where nothing counts.
    """
    counted = loss_mask[:, 1:]
    if hidden.dim() == 2:
        return hidden, tokens[:, 1:][counted]
    if (at := predicting(loss_mask)) is not None:
        return hidden.flatten(0, 1).index_select(0, at), tokens[:, 1:][counted]
    return hidden[:, :-1].flatten(0, 1), tokens[:, 1:].masked_fill(~counted, IGNORED).flatten()


class _SummedLoss(torch.autograd.Function):
    """Sum of the cross-entropies of rows (C, D) under a head, with the gradients of rows and head taken on the way.

    A chunk's logits give its loss and, at once, its gradients: the head runs once, where recomputing it in the
    backward pass costs a third more products. The loss is one number, so the backward pass only scales.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, head: Head, chunk: int, targets: Tensor, rows: Tensor, *weights: nn.Parameter
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        row_gradients: list[Tensor] = []
        sums: list[Tensor] = []
        for piece, wanted in _chunks(rows, targets, chunk):
            loss, first, *others = _chunk_gradients(head, piece, wanted, weights)
            total += loss
            row_gradients.append(first)
            sums = [a.add_(b) for a, b in zip(sums, others, strict=True)] if sums else others
        ctx.save_for_backward(torch.cat(row_gradients), *sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # In place: the peak of a step is here. Who goes back twice over one loss is told so by torch.
        return None, None, None, *(saved.mul_(gradient) for saved in ctx.saved_tensors)


def _chunk_gradients(
    head: Head, rows: Tensor, targets: Tensor, weights: tuple[nn.Parameter, ...]
) -> tuple[Tensor, ...]:
    """Loss of one chunk, and its gradients for rows and weights; its logits end with the call."""
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        logits = head(leaf)
    out = logits.detach() if _is_matrix(head) else torch.empty_like(logits)
    loss, gradient = _loss_and_gradient(logits.detach(), targets, out)
    return loss, *torch.autograd.grad(logits, [leaf, *weights], gradient)


def _loss_and_gradient(logits: Tensor, targets: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in fp32 and its gradient, softmax - one-hot, in the logits' dtype (C, V).

    The gradient is written to the tensor of this name, which may be that of the logits.
    An IGNORED target has neither. One slice of rows after the other: a CPU then finds each slice's fp32 numbers in
    its cache.
    """
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    masked = logits.device.type != "cpu" or bool(
        (targets == IGNORED).any()
    )  # a GPU would have to wait to be asked
    parts = zip(*(_slices(logits, rows) for rows in (logits, targets, gradient)), strict=True)
    for scores, wanted, out in parts:
        softmax, normaliser = _softmax_and_normaliser(scores)
        index = wanted.clamp(min=0)[:, None]
        losses = normaliser - scores.gather(-1, index).squeeze(-1).float()
        softmax.scatter_add_(-1, index, softmax.new_full((len(wanted), 1), -1.0))
        if masked:
            counts = wanted != IGNORED
            losses, softmax = losses.where(counts, 0.0), softmax.mul_(counts[:, None])
        total += losses.sum()
        out.copy_(softmax)
    return total, gradient


def _softmax_and_normaliser(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (C, V) -> their softmax (C, V) and log sum exp (C,), both fp32, with one pass of exponentials."""
    softmax = F.softmax(scores, dim=-1, dtype=torch.float32)
    # from the likeliest word, whose probability cannot underflow
    return softmax, scores.amax(-1).float() - softmax.amax(-1).log()


def _is_matrix(head: Head) -> bool:
    """Whether the head keeps what it reads and not what it gives, so that its logits may be written over.

    Hooks (of tensor parallelism) may hand on a view.
    """
    return isinstance(head, nn.Linear) and not head._forward_hooks


def token_logprobs_from_hidden(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each counted token given those before it, and the entropy of what it was drawn from.

    Our choice: 0 outside `mask`, so that the head runs on counted positions only. The entropy carries no
    gradient: the paper's objective has no entropy bonus, it is for the log. On a GPU the head runs on all positions,
    as in `next_token_loss_from_hidden`: to pick some, the host would have to wait for their number.
    hidden (B, T, D), or (C, D) at `predicting(mask)` alone; tokens (B, T), mask (B, T) -> two (B, T) fp32.
    """
    counted = mask[:, 1:]
    rows, targets = _counted_rows(hidden, tokens, mask)
    targets = targets.clamp(min=0)  # any word where nothing counts: its figures are dropped below

    def chunk_logprobs(rows: Tensor, targets: Tensor) -> Tensor:
        return _ChosenLogprobs.apply(head(rows), targets, temperature, _is_matrix(head))  # type: ignore[return-value]

    both = torch.cat(_by_chunk(chunk_logprobs, rows, targets, chunk or _positions(head)), dim=1)  # (2, C)
    if len(rows) == counted.numel():
        spread = both.view(2, *counted.shape).masked_fill(~counted, 0.0)
    else:
        spread = both.new_zeros(2, *counted.shape).masked_scatter(counted, both)
    logprobs, entropies = F.pad(spread, (1, 0))
    return logprobs, entropies.detach()


class _ChosenLogprobs(torch.autograd.Function):
    """Log-probabilities of targets (C,) under logits (C, V), and the entropies: (2, C) fp32.

    Keeps the logits in their own dtype and nothing else of their size. The softmax is taken again in the backward
    pass, slice after slice as in `_loss_and_gradient`; only the first row has a gradient, which takes the place of
    the logits where they are `free` to be written over.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, free: bool
    ) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.temperature, ctx.free = temperature, free
        both = torch.empty(2, len(targets), dtype=torch.float32, device=logits.device)
        parts = zip(*(_slices(logits, rows) for rows in (logits, targets, both.T)), strict=True)
        for scores, wanted, out in parts:
            scaled = scores.float() / temperature
            softmax, normaliser = _softmax_and_normaliser(scaled)
            out[:, 0] = scaled.gather(-1, wanted[:, None]).squeeze(-1) - normaliser
            out[:, 1] = normaliser - softmax.mul_(scaled).sum(-1)
        return both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, targets = ctx.saved_tensors
        found = logits if ctx.free else torch.empty_like(logits)
        scale = gradient[0] / ctx.temperature
        parts = zip(*(_slices(logits, rows) for rows in (logits, targets, scale, found)), strict=True)
        for scores, wanted, by, out in parts:
            softmax = F.softmax(scores.float() / ctx.temperature, dim=-1)
            softmax.scatter_add_(-1, wanted[:, None], softmax.new_full((len(wanted), 1), -1.0))
            out.copy_(softmax.mul_(-by[:, None]))
        return found, None, None, None


def _slices(logits: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Rows (C, ...) in as many pieces as keep each piece of the logits (C, V) in a CPU's cache; one on a GPU."""
    count = max(1, CPU_SLICE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits) or 1
    return rows.split(count)


def _positions(head: Head) -> int:
    """Positions per chunk."""
    words = head.out_features if isinstance(head, nn.Linear) else CHUNK_LOGITS
    return max(CHUNK, CHUNK_LOGITS // words)


def _chunks(rows: Tensor, targets: Tensor, chunk: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.split(chunk), targets.split(chunk), strict=True))


def _by_chunk(
    function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, targets: Tensor, chunk: int
) -> list[Tensor]:
    """function on each chunk of rows; recomputed in the backward pass where there is more than one."""
    pieces = _chunks(rows, targets, chunk)
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return [function(r, t) for r, t in pieces]
    return [
        checkpoint(function, r, t, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
        for r, t in pieces
    ]
