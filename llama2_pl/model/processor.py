"""What the device computes fast: the precision to train in, the library for a CPU's products."""

from __future__ import annotations

import functools
from typing import Literal

import torch

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # the last two are ARM's


@functools.cache
def capabilities() -> dict[str, bool | int | str]:
    """What the CPU can do, by torch's names; of torch 2.10 the little that it tells."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {
        "avx512_f": torch.cpu._is_avx512_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def has_bf16_units(device_type: str) -> bool:
    """Whether bf16 products are faster than fp32 ones, as they are in hardware.

    Elsewhere they are emulated: a CPU with AVX2 alone takes ten to a hundred times as long for them.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = any(capabilities().get(name) for name in BF16_UNITS)
    return device_type == "cpu" and units and packs(torch.bfloat16)


def device_type_there() -> str:
    """torch's name for the accelerator of this machine, "cpu" where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def best_precision(device_type: str | None = None) -> Literal["bf16-mixed", "32-true"]:
    """The faster of these two precisions on a device, for `L.Trainer(precision=...)`.

    Args:
        device_type: "cpu", "cuda" or another of torch's; None: the accelerator that is there, otherwise "cpu".
    """
    return "bf16-mixed" if has_bf16_units(device_type or device_type_there()) else "32-true"


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by matrices of this type in an order of its own on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def onednn_beats_mkl() -> bool:
    """Whether fp32 products are faster in oneDNN than in MKL, which is torch's choice.

    MKL uses AVX-512 on Intel's processors alone: on AMD's that have it, it takes twice as long as oneDNN. With AVX2 on
    both sides MKL is the faster one, by a tenth forward and by a third for the gradients of weights.
    """
    cpu = capabilities()
    return bool(cpu.get("avx512_f")) and "AMD" in str(cpu.get("cpu_name"))
