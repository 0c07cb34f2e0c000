"""Keys and values of the rows being decoded. Each row fills its slots from the first on, at its own pace.

Shapes: R rows, G kv heads, S slots, K head dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# A layer's number, queries (N, H, K), keys and values (N, G, K) of N tokens -> (N, H * K).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

GROWTH = 32  # slots added at a time on a CPU: copying costs as much as reading what is not filled yet


def static_shapes(device: torch.device) -> bool:
    """Whether sizes are fixed, for CUDA graphs, and nobody looks at each step which rows have ended."""
    return device.type != "cpu"


def write_and_read(
    keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, positions: Tensor
) -> Tensor:
    """Keys and values (R, G, S, K) take k and v (R, G, K) at positions (R,); queries (R, H, K) read up to there.

    Sums of products, which the compiler makes one pass over keys and one over values; eagerly it is slower than
    matrix products. Scores and weights are fp32.
    """
    rows, (_, groups, slots, size) = torch.arange(len(positions)), keys.shape
    keys[rows, :, positions], values[rows, :, positions] = k, v
    heads = q.view(len(positions), groups, -1, 1, size).float()
    scores = (keys[:, :, None].float() * heads).sum(-1) / math.sqrt(size)
    unread = torch.arange(slots) > positions[:, None]
    weights = scores.masked_fill(unread[:, None, None], -math.inf).softmax(-1)
    return (weights[..., None] * values[:, :, None].float()).sum(-2).to(q.dtype).view(len(positions), -1)


@functools.cache
def compiled_step() -> Callable[..., Tensor]:
    """`write_and_read` through torch.compile, once for all sizes."""
    return torch.compile(write_and_read, dynamic=True)


class Slots:
    """A list of keys and one of values, (R, G, S, K) per layer; beyond a row's position lies nothing that is read.

    On a CPU a layer's tensor is as long as needed and no longer, and all of it is read, under a bias: with gaps
    between the rows, attention takes three to five times as long there. Elsewhere the size is fixed from the start.
    `compiled`: on a CPU through torch.compile, in bf16 twice as fast.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        kv_heads: int,
        head_dim: int,
        limit: int,
        dtype: torch.dtype,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.limit, self.grows = limit, not static_shapes(device)
        self.head_dim, self.compiled = head_dim, compiled
        shape = (rows, kv_heads, 0 if self.grows else limit, head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2)
        )

    @property
    def size(self) -> int:
        return self.keys[0].shape[2]

    def fit(self, width: int) -> None:
        """Room for `width` slots, and not much more."""
        if self.grows and not self.size - 2 * GROWTH < width <= self.size:
            size = min(-(-width // GROWTH) * GROWTH, self.limit)
            for tensors in (self.keys, self.values):
                for number, tensor in enumerate(tensors):
                    tensors[number] = self._resized(tensor, size)

    @staticmethod
    def _resized(tensor: Tensor, size: int) -> Tensor:
        kept = min(size, tensor.shape[2])
        # Zeros: whatever else memory holds might be NaN, which no weight of 0 takes away.
        out = tensor.new_zeros(*tensor.shape[:2], size, tensor.shape[3])
        out[:, :, :kept] = tensor[:, :, :kept]
        return out

    def put(self, rows: Tensor, keys: list[Tensor], values: list[Tensor], source: Tensor) -> None:
        """Into the first slots of these rows (N,): what was read of prompts source (N,), (P, G, W, K) per layer.

        Where W exceeds the slots, those prompts' rows have ended with their first token.
        """
        width = min(keys[0].shape[2], self.size)
        for mine, read in ((self.keys, keys), (self.values, values)):
            for tensor, prompts in zip(mine, read, strict=True):
                tensor[rows, :, :width] = prompts[source, :, :width].to(tensor.dtype)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Rows of `source` (N,) over those of `target`."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target] = tensor[source]

    def reader(self, positions: Tensor, width: int) -> Attend:
        """What writes a token's keys and values at its position and reads the slots up to there."""
        if self.grows and self.compiled:
            return self._compiled_reader(positions)
        reads, rows = self._reader(positions, width), torch.arange(len(positions), device=positions.device)

        def read(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[number][rows, :, positions] = k
            self.values[number][rows, :, positions] = v
            return reads(number, q)

        return read

    def _compiled_reader(self, positions: Tensor) -> Attend:
        step, rows = compiled_step(), len(positions)

        def read(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return step(self.keys[number][:rows], self.values[number][:rows], q, k, v, positions)

        return read

    def _reader(self, positions: Tensor, width: int) -> Callable[[int, Tensor], Tensor]:
        """What reads a layer: its number, one query (R, H, K) per row -> (R, H * K), over slots up to the position."""
        rows, groups = len(positions), self.keys[0].shape[1]
        width = self.size if self.grows else width
        usable = torch.arange(width, device=positions.device) <= positions[:, None]  # (R, S)
        bias = torch.zeros(usable.shape, dtype=self.keys[0].dtype, device=positions.device)
        bias = bias.masked_fill_(~usable, -math.inf)[:, None, None]
        if not self.grows:
            return self._through_torch(bias)
        bias = bias.expand(-1, groups, -1, -1).reshape(rows * groups, 1, width)

        def read(number: int, queries: Tensor) -> Tensor:
            keys, values = (x[number][:rows].flatten(0, 1) for x in (self.keys, self.values))
            q = queries.reshape(rows * groups, -1, self.head_dim)  # the heads of a group, side by side
            scores = torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=1 / math.sqrt(self.head_dim))
            return torch.bmm(scores.softmax(-1), values).view(rows, -1)

        return read

    def _through_torch(self, bias: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The heads of a group as queries of one head: torch's kernels that take a bias share no keys among heads."""
        rows, width = len(bias), bias.shape[-1]

        def read(number: int, queries: Tensor) -> Tensor:
            keys, values = (x[number][:rows, :, :width] for x in (self.keys, self.values))
            q = queries.unflatten(1, (keys.shape[1], -1))  # (R, G, H / G, K)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias).flatten(1)

        return read
