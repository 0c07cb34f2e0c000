"""Scaled dot-product attention: torch's, or on a CPU one of matrix products, which there is the faster one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

LONGEST_IN_FP32 = 512  # blocks keep T / 2 weights of each token and head for the backward pass, torch's none
QUERY_BLOCK = 128  # the fastest of 64 to 512 on two cores, at 256 and 512 tokens


class Documents(NamedTuple):
    """Packed rows for the flash kernel: bounds (N + 1,) int32 of the N documents among B * T tokens."""

    bounds: Tensor
    longest: int
    """No document has more tokens."""


Mask = Tensor | Documents | None


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
    """Queries (B, H, T, K) read keys and values (B, G, T, K), each of the G for H / G heads -> (B, H, T, K).

    mask (B or 1, 1, T, T) True where attended, nobody reads ahead; None: plain causal; Documents: causal inside each.
    """
    if isinstance(mask, Documents):
        return attend_in_documents(queries, keys, values, mask)
    fits = queries.dtype == torch.bfloat16 or queries.shape[2] <= LONGEST_IN_FP32
    if queries.device.type == "cpu" and fits:
        return attend_in_blocks(queries, keys, values, mask)
    return attend_in_torch(queries, keys, values, mask)


def attend_in_torch(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same through torch's kernel for the device."""
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=keys.shape[1] != queries.shape[1],
    )


def attend_in_documents(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Tensor:
    """Each document of packed rows by itself, in torch's flash kernel: CUDA, bf16 or fp16."""
    if queries.dtype == torch.float32:
        raise ValueError(
            "flash_attention is on and computes in bf16 or fp16, and the network runs in float32: "
            "set trainer.precision to bf16-mixed, or turn it off"
        )
    bounds, longest = documents
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))  # (B * T, heads, K)
    shared = q.shape[1] != k.shape[1]
    attended = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), enable_gqa=shared
    )  # a window of all that came before: causal
    assert isinstance(attended, Tensor)
    return attended.unflatten(0, (queries.shape[0], queries.shape[2])).transpose(1, 2)


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, block: int = QUERY_BLOCK
) -> Tensor:
    """The same by matrix products: a block of queries against the keys it may read.

    These are the ones up to its end; in packed rows, where no document is much longer than a block, they begin not far
    before it. torch's CPU kernel does not use the bf16 matrix units in its backward pass, where this takes half of its
    time, and in fp32 two thirds. In bf16 scores are rounded to it here, and the softmax is computed in fp32.
    """
    batch, heads, steps, size = queries.shape
    shared = heads // keys.shape[1]
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    q, k, v = (x.reshape(batch * heads, steps, size) for x in (queries, keys, values))
    packed = mask is not None
    if mask is None:
        mask = torch.ones(steps, steps, dtype=torch.bool, device=q.device).tril()[None, None]
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    parts = []
    for start in range(0, steps, block):
        end = min(start + block, steps)
        first = _first_read(mask[:, :, start:end, :end]) if packed else 0
        rows = bias[:, :, start:end, first:end].expand(batch, heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(
            rows, q[:, start:end], k[:, first:end].transpose(1, 2), alpha=1 / math.sqrt(size)
        )
        attended = scores.softmax(-1) @ v[:, first:end]
        parts.append(attended.view(batch, heads, -1, size).transpose(1, 2))
    return torch.cat(parts, 1).transpose(1, 2)  # the heads of a token side by side, as wo reads them


def _first_read(mask: Tensor) -> int:
    """The first key that any query of a block reads; 0 in a compiled block, which would be compiled for each number."""
    if torch.compiler.is_compiling():
        return 0
    return int(mask.flatten(0, -2).any(0).to(torch.uint8).argmax())
