"""From logits to tokens: temperature, nucleus, and the inverse of the cumulative distribution at one uniform a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES = 64  # likeliest tokens looked at before a whole sort: most nuclei are smaller
BLOCK = 64  # about the square root of the usual vocabularies: as many blocks as tokens in one


def pick_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """(B, V) float32 logits, (B,) uniforms in [0, 1) -> (B,) token ids and (B,) log-probabilities at temperature 1."""
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    log_total = weights.sum(-1).log_() + peak.squeeze(-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        if temperature != 1:
            weights = torch.sub(logits, peak).div_(temperature).exp_()
        if top_p < 1:
            weights = nucleus(weights, top_p)
        tokens = invert(weights, uniforms)
    return tokens, logits.gather(1, tokens[:, None]).squeeze(1) - log_total


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """(B, V) weights, not negative, (B,) uniforms in [0, 1) -> (B,) ids: the first whose cumulative share exceeds it.

    In blocks: sums of all, then the running sum of the chosen one only. A running sum over V is several passes.
    """
    rows, vocabulary = weights.shape
    missing = -vocabulary % BLOCK
    blocks = (F.pad(weights, (0, missing)) if missing else weights).view(rows, -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum_(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK)).squeeze(1).cumsum(-1)
    return (block * BLOCK + _first_above(inner, target - before)).squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """(B, N) running sums, (B, 1) -> (B, 1): the first that exceeds the target, never one that adds nothing."""
    total = cumulative[:, -1:]
    # Rounding may carry the target up to the total itself, where nothing lies: stay one step below.
    below = torch.minimum(target, total.nextafter(torch.zeros_like(total))).clamp_(min=0)
    return torch.searchsorted(cumulative, below, right=True)


def nucleus(weights: Tensor, top_p: float) -> Tensor:
    """(B, V) -> (B, V): keep the likeliest tokens while the mass before them is at most top_p, renormalise.

    Meta's generation code: a token is dropped where cumsum - p > top_p, so the one that crosses top_p is kept; of
    equals at the edge, those of the lowest ids. The result does not depend on how the edge was found.
    """
    total = weights.sum(-1, keepdim=True)
    count, edge = _edge(weights, top_p * total)
    kept = weights >= edge
    on_gpu = weights.device.type != "cpu"  # which does not wait for an answer
    if on_gpu or bool((kept.sum(-1, keepdim=True) > count).any()):
        equal = weights == edge
        room = count - (weights > edge).sum(-1, keepdim=True)
        kept &= ~equal | (equal.cumsum(-1) <= room)
    chosen = weights * kept
    return chosen / chosen.sum(-1, keepdim=True)


def _edge(weights: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens are kept and the weight of the last of them, (B, 1) each; limit (B, 1) on the mass before."""
    if weights.device.type != "cpu":  # to choose the rows that need a sort, it would have to wait
        return _edge_in(weights.sort(-1, descending=True).values, limit)
    ordered = weights.topk(min(CANDIDATES, weights.shape[1])).values
    count, edge = _edge_in(ordered, limit)
    # Where all candidates are kept, more may be.
    short = (count.squeeze(1) == ordered.shape[1]).nonzero().squeeze(1)
    if len(short) and ordered.shape[1] < weights.shape[1]:
        whole = weights[short].sort(-1, descending=True).values
        count[short], edge[short] = _edge_in(whole, limit[short])
    return count, edge


def _edge_in(ordered: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    count = (ordered.cumsum(-1) - ordered <= limit).sum(-1, keepdim=True)
    return count, ordered.gather(1, count - 1)
