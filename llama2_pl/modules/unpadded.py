"""Right-padded rows read without their padding: several share a row, apart by document ids, and are put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama2_pl.data.packing import PADDING_ID, pack_whole

ROWS_IN_ONE = 4  # of the longest: wider rows are filled better, and cost more attention
SAVED = 0.1  # less than this share of the positions is not worth a mask


class Packing(NamedTuple):
    """Where the N tokens that are read of rows (B, T) lie in fewer rows (R, W).

    Attributes:
        source: (N,) places in the rows, flattened.
        target: (N,) places in the packed rows, flattened.
        document_ids: (R, W); -1 where nothing lies.
    """

    source: Tensor
    target: Tensor
    document_ids: Tensor


def packing(mask: Tensor, longest: int) -> Packing | None:
    """How to pack rows of prompt, response and padding: each up to its last token in mask (B, T), most `longest` wide.

    A row without any is not read at all. None where the rows as they are cost little more.
    """
    rows, width = mask.shape
    columns = torch.arange(1, width + 1, device=mask.device)
    lengths = (mask * columns).amax(1).cpu().numpy()
    used = lengths.nonzero()[0]
    if not len(used):
        return None
    plan = pack_whole(lengths[used], max(width, min(ROWS_IN_ONE * width, longest)), seed=0)
    documents = [used[plan.row(r)] for r in range(len(plan))]
    packed = max(int(lengths[row].sum()) for row in documents)
    if len(documents) * packed > (1 - SAVED) * rows * width:
        return None
    ids = np.full((len(documents), packed), -1, dtype=np.int32)
    source, target = [], []
    for r, row in enumerate(documents):
        at = 0
        for number, document in enumerate(row.tolist()):
            length = int(lengths[document])
            ids[r, at : at + length] = number
            source.append(np.arange(length) + document * width)
            target.append(np.arange(at, at + length) + r * packed)
            at += length
    parts = (np.concatenate(source), np.concatenate(target), ids)
    return Packing(*(torch.from_numpy(part).to(mask.device) for part in parts))


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
