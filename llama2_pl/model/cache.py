"""The key-value cache: state that callers hold and pass, never part of a module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llama2_pl.model.config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's part of a KVCache: keys and values (B, G, S, K), `length` slots of them filled.

    Blocks get this and no layer number: a compiled block would be compiled again for each number.
    """

    keys: Tensor
    values: Tensor
    length: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, G, T, K) behind the filled slots; keys and values of the filled prefix with them, (B, G, S, K)."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Keys and values of all layers, (L, B, G, S, K) each; `length` slots are filled, the same for every row."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch, config.kv_heads, slots, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def slots(self) -> int:
        return self.keys.shape[3]

    def layer(self, number: int) -> LayerCache:
        """Views: what is written into them is in the cache."""
        return LayerCache(self.keys[number], self.values[number], self.length)

    def advance(self, steps: int) -> None:
        """Count the slots that every layer has written."""
        self.length += steps

    def select(self, rows: Tensor) -> KVCache:
        """A cache of these rows, in this order; a row may come several times. (R,) integer indices."""
        chosen = object.__new__(KVCache)
        chosen.length = self.length
        chosen.keys, chosen.values = (self._rows(tensor, rows) for tensor in (self.keys, self.values))
        return chosen

    def _rows(self, tensor: Tensor, rows: Tensor) -> Tensor:
        layers, _, groups, slots, size = tensor.shape
        out = tensor.new_empty(layers, len(rows), groups, slots, size)
        # Only the filled prefix holds anything worth copying.
        out[:, :, :, : self.length] = tensor[:, :, :, : self.length].index_select(1, rows)
        return out
