"""CUDA kernels of other libraries in the place of ours: switches of the ParallelPlan, all off by default.

Names and values of parameters stay, so checkpoints do not know of them. Without a GPU they were compared with ours:
Liger's kernels in Triton's interpreter, float8 in torchao's emulation, and what the flash kernel is given with a
literal one in its place. None has been run on a GPU: tests/model/test_kernels.py does so where there is one.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from llama2_pl.model.elementwise import Rotation
from llama2_pl.model.layers import Attention, Block, FeedForward, Linear, RMSNorm, matrix_dtype
from llama2_pl.model.transformer import Transformer

# switch: (library, what installs it, oldest CUDA capability)
NEEDS = {
    "liger": ("liger_kernel", "pip install 'llama2-pl[kernels]'", (8, 0)),
    "flash_attention": ("torch", "pip install 'torch>=2.13'", (8, 0)),
    "float8": ("torchao", "pip install 'llama2-pl[kernels]'", (8, 9)),
}


def require(switch: str) -> None:
    """Raise ValueError where a switch cannot work, with the way out."""
    library, install, capability = NEEDS[switch]
    old = switch == "flash_attention" and "enable_gqa" not in inspect.signature(varlen_attn).parameters
    if old or find_spec(library) is None:
        raise ValueError(f"{switch} is on and {library} is {'too old' if old else 'missing'}: {install}")
    if not torch.cuda.is_available():
        raise ValueError(f"{switch} is on and there is no CUDA device; turn it off, or run on one")
    if (found := torch.cuda.get_device_capability()) < capability:
        raise ValueError(
            f"{switch} is on and needs a GPU of capability {capability[0]}.{capability[1]}; "
            f"{torch.cuda.get_device_name()} has {found[0]}.{found[1]}; turn it off"
        )


def use_liger(model: nn.Module) -> None:
    """Norm, SwiGLU and RoPE as one Triton kernel each (Liger, arXiv:2410.10989), forward and backward.

    Its fused linear cross-entropy is not taken: `next_token_loss_from_hidden` goes the same way, logits in chunks
    and their gradients at once, and sums the head's gradient in its own type.
    """
    fused = {RMSNorm: LigerRMSNorm, FeedForward: LigerFeedForward, Attention: LigerAttention}
    for module in model.modules():
        module.__class__ = fused.get(type(module), type(module))


class LigerRMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

        # Not in place: the gradient that comes in may be somebody else's.
        return LigerRMSNormFunction.apply(x, self.weight, self.eps, 0.0, "llama", False).to(matrix_dtype(x))


class LigerFeedForward(FeedForward):
    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # type: ignore[import-not-found]

        return LigerSiLUMulFunction.apply(gate, up)


class LigerAttention(Attention):
    def rotate(self, queries: Tensor, keys: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.rope import LigerRopeFunction  # type: ignore[import-not-found]

        return LigerRopeFunction.apply(queries, keys, rotation.cos.squeeze(1), rotation.sin.squeeze(1))


def join_projections(blocks: list[Block]) -> None:
    """Query, key and value in one matrix product, and so gate and up; parameters and checkpoints stay apart."""
    for block in blocks:
        block.attention.joined = block.feed_forward.joined = True


def use_flash_attention(model: nn.Module) -> None:
    """Packed rows through torch's flash kernel for documents of unequal length, without a (T, T) mask.

    Rows of one document take torch's flash kernel on a GPU as they are.
    """
    for module in model.modules():
        if isinstance(module, Transformer):
            module.flash_attention = True


def use_float8(blocks: list[Block], emulate: bool = False) -> None:
    """The blocks' matrix products in float8 with a scale per tensor (torchao); embedding, norms and head stay.

    Weights and optimizer stay as they are. It pays compiled, and from a model dimension of about 4096 on.

    Args:
        blocks: of a network.
        emulate: compute with rounded numbers in higher precision, where there is no float8 product.
    """
    from torchao.float8 import (  # type: ignore[import-not-found]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    # Rows x tokens need not divide by 16, as float8 products ask for.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    for block in blocks:
        spreads = {name: m.std for name, m in block.named_modules() if isinstance(m, Linear)}
        convert_to_float8_training(block, config=config)
        for name, std in spreads.items():
            module = block.get_submodule(name)
            # torchao's class has torch's initialisation, and whoever builds on a mesh initialises after this.
            module.std = std  # type: ignore[assignment]
            module.reset_parameters = MethodType(Linear.reset_parameters, module)  # type: ignore[assignment]
