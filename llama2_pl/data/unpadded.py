"""Right-padded rows read without their padding, and what several of them begin with once for all.

A batch of pairs, of answers or of K samples is padded, since a row is one answer. Read as it is, most of the work goes
into padding and into prompts that stand in it twice. So its rows are laid into fewer ones, apart by document ids, and
rows that begin alike become one document: the trunk, then each row's own tokens as a branch, which read the trunk and
themselves. What comes out is put back where the padded rows have it; it is the same but for rounding.

Not in Llama 2: our choice. Plans are made on the host, where the lengths are, so that no step waits for them. Trees and
rows wider than the longest are for CPUs, where attention makes a (T, T) mask in any case: elsewhere kernels that need
none are faster, and they read whole documents only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama2_pl.data.batches import Packing
from llama2_pl.data.packing import PADDING_ID, RowPlan, pack_whole

ROWS_IN_ONE = 4  # of the longest: wider rows are filled better, and cost more attention
ALIGNED = 8  # packed rows are a multiple of it wide, which kernels read faster, and there are fewer shapes
SAVED = 0.1  # less than this share of the positions is not worth a mask
WORTH_SHARING = 0.25  # of a row's tokens, so much is saved where it joins the rows that begin like it
WIDTHS_TRIED = 4  # between rows filled to the brim and the widest allowed


class Family(NamedTuple):
    """Rows that begin with the same `common` tokens; together `size` ones, where those are counted once."""

    rows: tuple[int, ...]
    common: int
    size: int

    def with_row(self, row: int, length: int, common: int) -> Family:
        """The family with one more row, which shares that much with all of them."""
        total = self.size + self.common * (len(self.rows) - 1) + length
        return Family((*self.rows, row), common, total - common * len(self.rows))


def families(tokens: np.ndarray, lengths: np.ndarray, most: int) -> list[Family]:
    """Right-padded rows (B, T) of so many tokens (B,) in families of at most `most` tokens, each row in one of them."""
    rows = [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]
    # those alike are neighbours
    order = sorted(range(len(rows)), key=lambda n: rows[n].astype(">u4").tobytes())
    found = [Family((order[0],), len(rows[order[0]]), len(rows[order[0]]))]
    for before, row in pairwise(order):
        family, length = found[-1], len(rows[row])
        common = min(family.common, _begin_alike(rows[before], rows[row]))
        joined = family.with_row(row, length, common)
        if joined.size <= most and family.size + length - joined.size >= WORTH_SHARING * length:
            found[-1] = joined
        else:
            found.append(Family((row,), length, length))
    return found


def _begin_alike(one: np.ndarray, other: np.ndarray) -> int:
    """With how many tokens both begin."""
    shorter = min(len(one), len(other))
    apart = (one[:shorter] != other[:shorter]).nonzero()[0]
    return int(apart[0]) if len(apart) else shorter


def takes_trees(device: torch.device) -> bool:
    """Whether rows with prompts in common, and wide rows, are worth their mask there."""
    return device.type == "cpu"


def widest(width: int, device: torch.device) -> int:
    """How wide packed rows may be there, of rows up to `width`."""
    return ROWS_IN_ONE * width if takes_trees(device) else width


def pack_pairs(tokens: np.ndarray, lengths: np.ndarray, trees: bool = True) -> Packing | None:
    """How to read the rows of preference pairs (2N, T): packed rows at most as wide as one of them or one family."""
    width = tokens.shape[1]
    if not trees:
        return pack_padded(lengths, width, width)
    related = families(tokens, lengths, 2 * width)
    return pack_padded(lengths, width, max(width, *(family.size for family in related)), related)


def pack_padded(
    lengths: np.ndarray, width: int, capacity: int, related: Sequence[Family] | None = None
) -> Packing | None:
    """How to read right-padded rows (B, width) of so many tokens (B,) in rows of at most `capacity` tokens.

    related: the rows in families, none above `capacity`; None: each by itself. A row of length 0 is not read at all.
    None where the rows as they are cost little more.
    """
    if related is None:
        related = [Family((n,), length, length) for n, length in enumerate(lengths.tolist()) if length]
    if not related:
        return None
    sizes = np.array([family.size for family in related])
    plan = _pack_evenly(sizes, capacity)
    packed = max(int(sizes[plan.row(r)].sum()) for r in range(len(plan)))
    packed = min(-(-packed // ALIGNED) * ALIGNED, capacity)
    if len(plan) * packed > (1 - SAVED) * len(lengths) * width:
        return None
    return _lay_out(plan, packed, related, lengths, width)


def _pack_evenly(sizes: np.ndarray, capacity: int) -> RowPlan:
    """As few rows as at `capacity`, and narrower where that suffices: the last row is filled, too."""
    plan = pack_whole(sizes, capacity, seed=0)
    narrowest = max(-(-int(sizes.sum()) // len(plan)), int(sizes.max()))
    for narrower in np.linspace(narrowest, capacity, WIDTHS_TRIED, endpoint=False, dtype=int).tolist():
        found = pack_whole(sizes, narrower, seed=0)
        if len(found) == len(plan):
            return found
    return plan


def _lay_out(
    plan: RowPlan, packed: int, related: Sequence[Family], lengths: np.ndarray, width: int
) -> Packing:
    ids = np.full((len(plan), packed), -1, dtype=np.int32)
    positions = np.zeros((len(plan), packed), dtype=np.int64)
    branches = np.zeros((len(plan), packed), dtype=np.int32)
    source, target = [], []
    for r in range(len(plan)):
        at = 0
        for number, family in enumerate(plan.row(r).tolist()):
            rows, common, size = related[family]
            trunk, ids[r, at : at + size] = np.arange(at, at + common), number
            positions[r, at : at + common] = np.arange(common)
            at += common
            for branch, row in enumerate(rows, start=1):
                length = int(lengths[row])
                end = at + length - common
                positions[r, at:end] = np.arange(common, length)
                branches[r, at:end] = branch
                source.append(np.arange(length) + row * width)
                target += [trunk + r * packed, np.arange(at, end) + r * packed]
                at = end
    shared = any(len(family.rows) > 1 for family in related)
    return Packing(
        torch.from_numpy(np.concatenate(source)),
        torch.from_numpy(np.concatenate(target)),
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        int(lengths.max()),
        torch.from_numpy(branches) if shared else None,
    )


def counted_lengths(mask: Tensor) -> np.ndarray:
    """(B,): tokens of each row up to the last in mask (B, T), 0 where there is none. The host waits for them."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1).cpu().numpy()


def on_device(packing: Packing | None, device: torch.device) -> Packing | None:
    """A plan where the rows are."""
    if packing is None:
        return None
    parts = (part.to(device) if isinstance(part, Tensor) else part for part in packing)
    return Packing(*parts)  # type: ignore[arg-type]


def read(
    forward: Callable[..., Tensor], tokens: Tensor, packing: Packing | None, at: Tensor | None = None
) -> Tensor:
    """What `forward` gives for tokens (B, T), (B, T, ...): 0 at positions that a packing leaves out.

    forward: a network or its `hidden`, which takes positions, document_ids, branches and at. at: places (N,) in the
    flattened tokens, none left out, where alone it is wanted, (N, ...). ValueError where a row is longer than the
    network can read.
    """
    if packing is None:
        return forward(tokens) if at is None else forward(tokens, at=at)
    most = getattr(forward, "__self__", forward).config.max_seq_len
    if packing.longest > most:
        raise ValueError(
            f"a row of {packing.longest} tokens and max_seq_len is {most}; shorten the rows or raise it"
        )
    ids = packing.document_ids
    packed = tokens.new_full((ids.numel(),), PADDING_ID)
    packed[packing.target] = tokens.flatten()[packing.source]
    inputs = {"positions": packing.positions, "document_ids": ids, "branches": packing.branches}
    if at is not None:
        place = packing.target.new_full((tokens.numel(),), -1).index_copy(0, packing.source, packing.target)
        return forward(packed.view_as(ids), **inputs, at=place[at])
    seen = forward(packed.view_as(ids), **inputs)
    # index_select and index_copy: the backward pass of plain indexing adds one row after the other on a CPU
    found = seen.flatten(0, 1).index_select(0, packing.target)
    out = found.new_zeros(tokens.numel(), *found.shape[1:])
    return out.index_copy(0, packing.source, found).unflatten(0, tokens.shape)
