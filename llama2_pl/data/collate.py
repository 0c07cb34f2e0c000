"""Rows of different lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 8


def right_pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows -> tokens (B, T) int64, with 0 behind each, and lengths (B,) int64; T is the longest rounded up to 8s.

    Our choice of 8: fewer distinct shapes for kernels and the allocator, at most 7 columns of padding.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    tokens[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)
