"""Liger's Triton kernels against ours without a GPU: run with TRITON_INTERPRET=1, by tests/model/test_kernels.py.

What Triton's interpreter lacks of a compiled kernel is put in its place: numbers that are handed to a kernel are fp32
there, and CUDA's own reciprocal root is Triton's. It cannot count in bf16, so mixed precision is compared in fp16.
"""

from __future__ import annotations

from typing import Any

import liger_kernel.ops.rms_norm as norms  # type: ignore[import-not-found]
import numpy as np
import test_kernels as kernels
import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from triton.runtime import interpreter  # type: ignore[import-not-found]

convert = interpreter._implicit_cvt


def with_floats(value: Any) -> Any:
    if not isinstance(value, float):
        return convert(value)
    return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


if __name__ == "__main__":
    interpreter._implicit_cvt, norms.rsqrt = with_floats, rsqrt
    for packed in (False, True):
        kernels.compare_liger(packed)
        kernels.compare_liger(packed, torch.float16, far=5e-3)
