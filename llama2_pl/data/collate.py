"""Rows of different lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 8


def right_pad(rows: Sequence[np.ndarray], padding_id: int = 0) -> tuple[Tensor, Tensor]:
    """Rows -> tokens (B, T) int64 and lengths (B,) int64; T is the longest row rounded up to a multiple of 8.

    Our choice of 8: fewer distinct shapes for kernels and the allocator, at most 7 columns of padding.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = -(-int(lengths.max()) // MULTIPLE) * MULTIPLE
    tokens = np.full((len(rows), width), padding_id, dtype=np.int64)
    tokens[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)
