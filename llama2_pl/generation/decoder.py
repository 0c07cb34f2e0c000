"""The network as sampling needs it: weights gathered, cast and packed once, then steps without waste.

The maths is that of model/layers.py and gives the same logits; tests compare the two. What differs: query, key and
value matrices in one, so w1 and w3; RoPE as one complex product, for which the rows of wq and wk are reordered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from llama2_pl.generation.slots import Attend, Slots
from llama2_pl.model.attention import attend
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.layers import Block, Linear
from llama2_pl.model.parallel import gathered
from llama2_pl.model.processor import packs

PACKED_ROWS = 8  # below, MKL's product of a vector is the faster one


class Matrix:
    """x (N, inputs) -> x W^T. On a CPU in oneDNN's own order, which few rows gain most from.

    `group`: the ranks of tensor parallel whose partial sums make the result.
    """

    def __init__(
        self, weight: Tensor, rows: int, group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        self.dtype, self.group = weight.dtype, group
        self.packed = weight.device.type == "cpu" and rows >= PACKED_ROWS and packs(weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed:
            out = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        else:
            out = F.linear(x, self.weight)
        if self.group is not None:
            torch.distributed.all_reduce(out, group=self.group)
        return out


class Layer(NamedTuple):
    """A block's weights."""

    attention_gain: Tensor
    qkv: Matrix
    wo: Matrix
    ffn_gain: Tensor
    w13: Matrix
    w2: Matrix


class Prefilled(NamedTuple):
    """What was read of P prompts, right-padded to W: logits (P, V), keys and values (P, G, W, K) of each layer."""

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class Decoder:
    """Weights of a LanguageModel on one device, whole but for the split of tensor parallel.

    Args:
        model: of one process, or spread by `parallelize`; all its ranks must make a Decoder at the same time.
        dtype: of the matrix products and of the cache; None: the weights'.
        rows: about how many tokens a product will have.
    """

    def __init__(self, model: LanguageModel, dtype: torch.dtype | None, rows: int) -> None:
        config = model.config
        self.eps, self.head_dim, self.rows = config.norm_eps, config.head_dim, rows
        angles = model.backbone.rope.angles[:, : config.head_dim // 2]
        self.rotations = torch.polar(torch.ones_like(angles), angles)[:, None]  # (S, 1, K / 2)
        self.compiled = model.backbone.compiled
        self.copies = any(isinstance(module, FSDPModule) for module in model.modules())
        with gathered(model):
            self.embedding = self._whole(model.backbone.embedding.weight)
            self.gain = self._whole(model.backbone.norm.weight)
            self.dtype = dtype or self.embedding.dtype
            self.head = Matrix(self._whole(model.head.weight).to(self.dtype), rows)
        self.kv_heads = config.kv_heads  # of this rank, once a layer has been seen
        self.layers = [self._layer(block) for block in model.backbone.layers]  # type: ignore[arg-type]
        self.split = any(layer.wo.group is not None for layer in self.layers)  # by tensor parallel

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Prefilled:
        """Read prompts (P, W), right-padded, of these lengths (P,): what is padded comes after all that counts."""
        prompts, width = tokens.shape
        keys, values = [], []

        def read(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.unflatten(0, (prompts, width)).transpose(1, 2) for x in (q, k, v))
            keys.append(k.contiguous())  # views would keep the queries too
            values.append(v.contiguous())
            return attend(q, k, v, None).transpose(1, 2).reshape(prompts * width, -1)

        positions = torch.arange(width, device=tokens.device).repeat(prompts)
        hidden = self._hidden(tokens.flatten(), positions, read)
        last = torch.arange(prompts, device=tokens.device) * width + lengths - 1
        return Prefilled(self._logits(hidden[last]), keys, values)

    def step(self, tokens: Tensor, positions: Tensor, slots: Slots, width: int) -> Tensor:
        """One more token (R,) of each row at its position (R,), below `width` -> logits (R, V) float32."""
        return self._logits(self._hidden(tokens, positions, slots.reader(positions, width)))

    def _hidden(self, tokens: Tensor, positions: Tensor, read: Attend) -> Tensor:
        """(N,) tokens -> (N, D), before the final norm."""
        x, rotation = F.embedding(tokens, self.embedding), self.rotations[positions]
        for number, layer in enumerate(self.layers):
            x = x + layer.wo(
                read(number, *self._heads(layer.qkv(self._norm(x, layer.attention_gain)), rotation))
            )
            gate, up = layer.w13(self._norm(x, layer.ffn_gain)).chunk(2, -1)
            x = x + layer.w2(F.silu(gate) * up)
        return x

    def _heads(self, qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, (H + 2 G) K) -> rotated queries (N, H, K), rotated keys and values (N, G, K)."""
        heads, groups = qkv.unflatten(-1, (-1, self.head_dim)), self.kv_heads
        turned = heads[:, :-groups]
        pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2))) * rotation
        turned = torch.view_as_real(pairs).flatten(-2).to(qkv.dtype)
        return turned[:, :-groups], turned[:, -groups:], heads[:, -groups:]

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * gain

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(self._norm(hidden, self.gain)).float()

    def _layer(self, block: Block) -> Layer:
        attention, feed_forward = block.attention, block.feed_forward
        with gathered(block):
            q, k, v = (self._local(m.weight) for m in (attention.wq, attention.wk, attention.wv))
            self.kv_heads = len(k) // self.head_dim
            q, k = (interleaved(weight, self.head_dim) for weight in (q, k))
            return Layer(
                self._whole(block.attention_norm.weight),
                self._matrix(torch.cat([q, k, v])),
                self._matrix(self._local(attention.wo.weight), attention.wo),
                self._whole(block.ffn_norm.weight),
                self._matrix(torch.cat([self._local(m.weight) for m in (feed_forward.w1, feed_forward.w3)])),
                self._matrix(self._local(feed_forward.w2.weight), feed_forward.w2),
            )

    def _matrix(self, weight: Tensor, summed: Linear | None = None) -> Matrix:
        """`summed`: the part whose columns tensor parallel has split, so that its ranks' results are added."""
        split = summed.weight if summed is not None else None
        group = split.device_mesh.get_group() if isinstance(split, DTensor) else None
        return Matrix(weight.to(self.dtype), self.rows, group)

    def _whole(self, parameter: Tensor) -> Tensor:
        """All of a parameter, also where tensor parallel has split it."""
        return self._kept(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)

    def _local(self, parameter: Tensor) -> Tensor:
        """This rank's part of a parameter under tensor parallel, otherwise all of it."""
        return self._kept(parameter.to_local() if isinstance(parameter, DTensor) else parameter)

    def _kept(self, tensor: Tensor) -> Tensor:
        """What FSDP2 gathers is gone once the unit is sharded again."""
        return tensor.detach().clone() if self.copies else tensor.detach()


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (heads * K, D) from the half-split order of RoPE's pairs, (i, i + K / 2), to neighbours, (2 i, 2 i + 1).

    The same for queries and keys, so that their products stay.
    """
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
