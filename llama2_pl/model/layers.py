"""RMSNorm, RoPE, grouped-query attention and SwiGLU: the parts of a block (Llama 2 §2.2).

Shapes: B batch, T time, D model, H query heads, G kv heads, K head dim, F hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llama2_pl.model.attention import Mask, attend
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.elementwise import Rotation, rms_norm, rotate, swiglu
from llama2_pl.model.onednn import OneDnnLinear, suits_onednn

INIT_STD = 0.02


class Linear(nn.Linear):
    """A matrix without bias, initialised with normal(0, std).

    Each part initialises itself: who materialises a meta-device network calls `reset_parameters` of the modules that
    own parameters, in any order, and would otherwise get torch's defaults.
    """

    def __init__(self, inputs: int, outputs: int, std: float = INIT_STD) -> None:
        self.std = std
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        normal_(self.weight, self.std)

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return product(input, self.weight)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, (..., inputs) -> (..., outputs)."""
    if suits_onednn(x, weight):
        return OneDnnLinear.apply(x, weight)  # type: ignore[return-value]
    return F.linear(x, weight)


class Embedding(nn.Embedding):
    """A table of vectors, initialised as the matrices are; torch's default has 50 times their spread."""

    def reset_parameters(self) -> None:
        normal_(self.weight, INIT_STD)


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back, then times the gain: the order of Meta's code.

    Under autocast the result has the type of the matrix products: each of the two or three matrices that read it
    would otherwise make, and keep for the backward pass, a copy of its own.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, matrix_dtype(x))


def matrix_dtype(x: Tensor) -> torch.dtype:
    """The type in which x is multiplied by a matrix: autocast's where that is on. The meta device has none."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else x.dtype


def products(x: Tensor, matrices: Sequence[Linear], joined: bool) -> Sequence[Tensor]:
    """x times each matrix; `joined`: in one product with all of them, which are put together when it is made."""
    if not joined:
        return [matrix(x) for matrix in matrices]
    weights = [matrix.weight.to(matrix_dtype(x)) for matrix in matrices]
    return product(x, torch.cat(weights)).split([len(weight) for weight in weights], -1)


class RoPE(nn.Module):
    """Rotary positions in the half-split layout: pair i is (i, i + K/2), angle position * theta ** (-2 i / K).

    The table is not part of a checkpoint and stays fp32: in bf16 neighbouring positions above 256 fall together.
    """

    angles: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("angles", torch.empty(0), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        size, device = self.config.head_dim, self.angles.device
        # In fp32 throughout, step by step as the released weights were trained: from an fp64 table the logits of
        # transformers differ by 1e-4 at 512 tokens and 1e-3 at 2048.
        exponent = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
        position = torch.arange(self.config.max_seq_len, dtype=torch.float32, device=device)
        # (S, K): both halves hold the same angles.
        self.angles = torch.outer(position, 1.0 / self.config.rope_theta**exponent).repeat(1, 2)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[override]
        # .to(bfloat16) moves the table but must not round it.
        super()._apply(fn, recurse)
        if self.angles.dtype != torch.float32:
            self.reset_parameters()
        return self

    def forward(self, positions: Tensor) -> Rotation:
        """(B or 1, T) -> rotation of those positions."""
        angles = self.angles[positions].unsqueeze(1)
        return Rotation(angles.cos(), angles.sin())


class Attention(nn.Module):
    """Causal self-attention; query head h reads kv head h // (H / G)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
        self.wq = Linear(config.dim, queries)
        self.wk = Linear(config.dim, keys)
        self.wv = Linear(config.dim, keys)
        self.wo = Linear(queries, config.dim, residual_std(config))
        # Set by `parallelize`.
        self.joined = False

    def forward(self, x: Tensor, rotation: Rotation, mask: Mask, at: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or (N, D): of the flattened tokens those at places (N,).

        mask (B, 1, T, T) True where attended, None: plain causal.
        """
        queries, keys, values = map(self._heads, products(x, (self.wq, self.wk, self.wv), self.joined))
        queries, keys = self.rotate(queries, keys, rotation)
        attended = attend(queries, keys, values, mask)
        return self.wo(picked(attended.transpose(1, 2).flatten(2), at))

    def rotate(self, queries: Tensor, keys: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        return rotate(queries, rotation), rotate(keys, rotation)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * K) -> (B, heads, T, K); the number of heads is read off, for tensor parallel has fewer."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn_hidden)
        self.w2 = Linear(config.ffn_hidden, config.dim, residual_std(config))
        self.w3 = Linear(config.dim, config.ffn_hidden)
        # Set by `parallelize`.
        self.joined = False

    def forward(self, x: Tensor) -> Tensor:
        gate, up = products(x, (self.w1, self.w3), self.joined)
        return self.w2(self.gated(gate, up))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(gate, up)


class Block(nn.Module):
    """h = x + attention(norm(x)); out = h + feed_forward(norm(h))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        # Set by `parallelize`. A flag, since torch's checkpoint_wrapper would change the names of the parameters.
        self.recompute = False

    def forward(self, x: Tensor, rotation: Rotation, mask: Mask, at: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or (N, D): of the flattened tokens those at places (N,).

        Keeps no activations for the backward pass where `recompute` is set.
        """
        if not self.recompute or not torch.is_grad_enabled():
            return self._transform(x, rotation, mask, at)
        # There is no dropout, hence no random state to keep.
        return checkpoint(  # type: ignore[return-value]
            self._transform, x, rotation, mask, at, use_reentrant=False, preserve_rng_state=False
        )

    def _transform(self, x: Tensor, rotation: Rotation, mask: Mask, at: Tensor | None) -> Tensor:
        h = picked(x, at) + self.attention(self.attention_norm(x), rotation, mask, at)
        return h + self.feed_forward(self.ffn_norm(h))


def picked(x: Tensor, at: Tensor | None) -> Tensor:
    """(B, T, D) -> (N, D), those at places (N,) of the flattened tokens; as it is without places."""
    return x if at is None else x.flatten(0, 1).index_select(0, at)


def residual_std(config: ModelConfig) -> float:
    """Of the outputs into the residual stream, wo and w2: 0.02, smaller by sqrt(2 * layers). All others: 0.02.

    Our choice: the paper does not disclose its initialisation; this keeps the residual stream's variance at depth.
    """
    return INIT_STD / math.sqrt(2 * config.n_layers)


@torch.no_grad()
def normal_(parameter: Tensor, std: float) -> None:
    """Draw from normal(0, std) in place.

    torch gives the shards of one matrix different numbers on a GPU only; on a CPU mesh every rank would draw the
    same, so there the first rank draws the whole.
    """
    if isinstance(parameter, DTensor) and parameter.device.type == "cpu":
        whole = torch.empty(parameter.shape, dtype=parameter.dtype).normal_(0.0, std)
        parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
    else:
        parameter.normal_(0.0, std)
