"""The sizes of a network that the plan's arithmetic needs, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from llama2_pl.model.config import ModelConfig

Precision = Literal["bf16-mixed", "bf16-true", "32-true"]


class Shape(NamedTuple):
    """What the arithmetic needs of a model: D, layers, G K (kv width), F, V, heads, kv heads, parameters."""

    dim: int
    layers: int
    kv_width: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    parameters: int
    max_seq_len: int


def shape_of(model: ModelConfig | Mapping[str, Any] | str | int) -> Shape:
    """The shape of a config; of a number of parameters, that of a Llama with D = 128 layers, as the 7B has."""
    if isinstance(model, int):
        layers = max(1, round((model / (12 * 128**2)) ** (1 / 3)))
        dim = 128 * layers
        return Shape(dim, layers, dim, 8 * dim // 3, 32_000, layers, layers, model, 4096)
    config = ModelConfig.of(model)
    return Shape(
        config.dim,
        config.n_layers,
        config.kv_heads * config.head_dim,
        config.ffn_hidden,
        config.vocab_size,
        config.n_heads,
        config.kv_heads,
        config.num_parameters(),
        config.max_seq_len,
    )


def bytes_of(precision: Precision) -> tuple[int, int]:
    """Bytes of a weight as it is kept, and as it is multiplied by."""
    return 2 if precision == "bf16-true" else 4, 4 if precision == "32-true" else 2


def block_bytes(shape: Shape, compute: int, tensor_parallel: int) -> float:
    """What a block makes of one token.

    Inputs and outputs of both norms (4 D, on every tensor-parallel rank); q before and after RoPE and attention's
    output (3 D), k before and after and v (3 G K), and w1, w3, silu and their product (4 F), split over ranks.
    """
    split = (3 * shape.dim + 3 * shape.kv_width + 4 * shape.ffn) / tensor_parallel
    return (4 * shape.dim + split) * compute
