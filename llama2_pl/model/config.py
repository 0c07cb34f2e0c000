"""The sizes of the Llama 2 family and of the small models for a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of Llama 2 (§2.2), as its released params.json names it.

    Attributes:
        dim: width D of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads H.
        n_kv_heads: key and value heads G; None: as many as query heads (MHA).
        vocab_size: V.
        multiple_of: the FFN's hidden size is rounded up to a multiple of this.
        ffn_dim_multiplier: widens the FFN, 1.3 for 70B.
        norm_eps: of RMSNorm.
        rope_theta: base of the rotary embedding.
        max_seq_len: longest context in tokens.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    vocab_size: int = 32_000
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_seq_len: int = 4096

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "vocab_size", "multiple_of", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("norm_eps", "rope_theta", "ffn_dim_multiplier"):
            value = getattr(self, name)
            absent = value is None and name == "ffn_dim_multiplier"
            if not absent and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}; change one of them")
        if self.head_dim % 2:
            raise ValueError(f"dim / n_heads is {self.head_dim}; RoPE rotates pairs, so it must be even")
        if not isinstance(self.kv_heads, int) or self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads {self.n_kv_heads!r} does not divide n_heads {self.n_heads}; each kv head serves a group"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ffn_hidden(self) -> int:
        """Two thirds of 4 D, widened, rounded up; the steps and their truncations are those of Meta's code."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)

    def num_parameters(self) -> int:
        """Of the language model: embedding, blocks, final norm and untied head."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim
        block = attention + 3 * self.dim * self.ffn_hidden + 2 * self.dim
        return 2 * self.vocab_size * self.dim + self.n_layers * block + self.dim

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what checkpoints and logs hold."""
        return asdict(self)

    def with_context(self, max_seq_len: int | None) -> ModelConfig:
        """The same with this longest context; None: as it is."""
        return self if max_seq_len is None else replace(self, max_seq_len=max_seq_len)

    def differences(self, other: ModelConfig) -> list[tuple[str, Any, Any]]:
        """(name, ours, theirs) of each size that differs. Sizes, not how they are written: an imported checkpoint may
        give the same FFN by another rule."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in _SIZES)
        return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]

    @classmethod
    def of(cls, config: ModelConfig | Mapping[str, Any] | str) -> ModelConfig:
        """A config from itself, from its dict, or from the name of a preset."""
        if isinstance(config, ModelConfig):
            return config
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"no preset {config!r}; there are {', '.join(PRESETS)}, or give the fields")
            return PRESETS[config]
        unknown = set(config) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"unknown model key {min(unknown)!r}; there are {', '.join(cls.__dataclass_fields__)}"
            )
        for name in ("dim", "n_layers", "n_heads"):
            if name not in config:
                raise ValueError(f"model key {name!r} is missing; give it, or the name of a preset")
        return cls(**config)


_SIZES = (
    "dim", "n_layers", "n_heads", "kv_heads", "vocab_size", "ffn_hidden", "norm_eps", "rope_theta", "max_seq_len",
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "7B": ModelConfig(dim=4096, n_layers=32, n_heads=32),
    "13B": ModelConfig(dim=5120, n_layers=40, n_heads=40),
    # Not in the paper: the configuration of Code Llama 34B, at Llama 2's rope_theta.
    "34B": ModelConfig(dim=8192, n_layers=48, n_heads=64, n_kv_heads=8, ffn_dim_multiplier=1.0),
    "70B": ModelConfig(
        dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3
    ),
    "34M": ModelConfig(dim=512, n_layers=8, n_heads=8, vocab_size=8192, multiple_of=32, max_seq_len=512),
    "demo": ModelConfig(
        dim=192, n_layers=4, n_heads=3, n_kv_heads=3, vocab_size=2048, multiple_of=64, max_seq_len=512
    ),
    "tiny": ModelConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=512, multiple_of=16, max_seq_len=128
    ),
}
