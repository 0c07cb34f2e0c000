"""Right-padded rows read without their padding: several share a row, apart by document ids, and are put back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llama2_pl.data.batches import Packing
from llama2_pl.data.packing import PADDING_ID, pack_padded

ROWS_IN_ONE = 4  # of the longest: wider rows are filled better, and cost more attention


def counted_lengths(mask: Tensor) -> np.ndarray:
    """(B,): tokens of each row up to the last in mask (B, T), 0 where there is none. The host waits for them."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1).cpu().numpy()


def packing(lengths: np.ndarray, width: int, longest: int, device: torch.device) -> Packing | None:
    """How to pack rows (B, width) of so many tokens (B,), at most `longest` to a row.

    A row of length 0 is not read at all. None where the rows as they are cost little more.
    """
    plan = pack_padded(lengths, width, max(width, min(ROWS_IN_ONE * width, longest)))
    return None if plan is None else Packing(*(part.to(device) for part in plan))


def read(forward: Callable[..., Tensor], tokens: Tensor, packing: Packing | None) -> Tensor:
    """What `forward` gives for tokens (B, T), (B, T, ...): 0 at positions that a packing leaves out.

    forward: a network or its `hidden`, which takes document_ids.
    """
    if packing is None:
        return forward(tokens)
    ids = packing.document_ids
    packed = tokens.new_full((ids.numel(),), PADDING_ID)
    packed[packing.target] = tokens.flatten()[packing.source]
    # index_select and index_copy: the backward pass of plain indexing adds one row after the other on a CPU
    found = forward(packed.view_as(ids), document_ids=ids).flatten(0, 1).index_select(0, packing.target)
    out = found.new_zeros(tokens.numel(), *found.shape[1:])
    return out.index_copy(0, packing.source, found).unflatten(0, tokens.shape)
