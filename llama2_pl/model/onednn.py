"""Matrix products in fp32 on a CPU through oneDNN, where torch's own, which are MKL's, take longer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from llama2_pl.model.processor import onednn_beats_mkl, packs

FEWEST_ROWS = 64  # below, the call costs what it saves


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is one of ours: fp32 outside autocast and torch.compile, which choose for themselves."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEWEST_ROWS * weight.shape[1]
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not isinstance(weight, DTensor)
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
        and packs(x.dtype)
        and onednn_beats_mkl()
    )


class OneDnnLinear(torch.autograd.Function):
    """x (..., I), weight (O, I) -> x W^T (..., O), forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        of_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = _product(rows.t(), inputs.t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
