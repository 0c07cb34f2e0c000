"""RMSNorm, rotation and SwiGLU's gate with backward passes of their own, which keep and pass over fewer numbers.

Between matrix products these are what a block computes. Autograd keeps every intermediate result of theirs and goes
through them one by one; here only the inputs are kept, and what they give is computed again. torch.compile fuses and
recomputes by itself and gets the plain expressions, as do torch.func's transforms, which need their parts.
Each is differentiable once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Rotation(NamedTuple):
    """cos and sin of each position's angles, (B or 1, 1, T, K) float32."""

    cos: Tensor
    sin: Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x (..., D) / rms(x) in fp32, cast back, then times the gain (D,): the order of Meta's code; as `dtype`."""
    if differentiated_elsewhere():
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (normed.to(x.dtype) * gain.to(x.dtype)).to(dtype)
    return _RMSNorm.apply(x, gain, eps, dtype)  # type: ignore[return-value]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of x (B, heads, T, K) by its position's angle, in fp32, and cast back."""
    if differentiated_elsewhere():
        wide = x.float()
        first, second = wide.chunk(2, -1)
        turned = wide * rotation.cos + torch.cat((-second, first), -1) * rotation.sin
        return turned.to(x.dtype)
    return _Rotated.apply(x, *rotation)  # type: ignore[return-value]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up if differentiated_elsewhere() else _SwiGLU.apply(gate, up)  # type: ignore[return-value]


def differentiated_elsewhere() -> bool:
    """Whether somebody else takes care of the backward pass."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _RMSNorm(torch.autograd.Function):
    """Keeps x and a number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        return (wide * inverse).to(x.dtype).mul_(gain.to(x.dtype)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """With n = x / rms: g n summed over rows; (g w - n mean(g w n)) / rms."""
        x, gain, inverse = ctx.saved_tensors
        normed, gradient = x.float() * inverse, gradient.float()
        both = gradient * normed
        of_gain = both.flatten(0, -2).sum(0).to(gain.dtype)
        along = both.mul_(gain).mean(-1, keepdim=True)
        of_x = (gradient * gain).sub_(normed.mul_(along)).mul_(inverse)
        return of_x.to(x.dtype), of_gain, None, None


class _Rotated(torch.autograd.Function):
    """Keeps cos and sin alone; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """The halves (a, b) of x become (a cos - b sin, b cos + a sin); both halves of cos and sin are the same."""
    half = x.shape[-1] // 2
    wide = x.float()
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:], value=sign)
    return out.to(x.dtype)


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, F.silu(gate).mul_(gradient)
