"""Which item comes when: pseudo-random orders computed from (seed, epoch, position), with no state at all.

Our choice, the paper has none. An order that is a function of a counter can be entered anywhere in O(1), and is
the same for every number of workers, ranks and restarts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_ROUNDS = 6
_U64 = np.uint64


def mix64(*values: int | np.ndarray) -> np.ndarray:
    """A well-mixed uint64 for each tuple of integers, elementwise (the finaliser of SplitMix64, chained)."""
    state = np.asarray(0, dtype=_U64)
    with np.errstate(over="ignore"):
        for value in values:
            state = (state ^ np.asarray(value).astype(_U64)) + _U64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> _U64(27))) * _U64(0x94D049BB133111EB)
            state = state ^ (state >> _U64(31))
    return state


def permute(index: int | np.ndarray, size: int, seed: int, epoch: int | np.ndarray = 0) -> np.ndarray:
    """Where position ``index`` of the shuffled order of ``size`` items points to; a new order for each epoch.

    A Feistel network over the next even power of two, walked until it lands below ``size``: a bijection with no
    table in memory, so a corpus of any size costs the same. ``index`` and ``epoch`` may be arrays.
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, dtype=np.int64), np.asarray(epoch, dtype=np.int64))
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = [mix64(mix64(seed, epoch, size) ^ _U64(r)) for r in range(_ROUNDS)]
    value = _feistel(index.astype(_U64), keys, half)
    outside = value >= size
    while outside.any():
        value = np.where(outside, _feistel(value, keys, half), value)
        outside = value >= size
    return value.astype(np.int64)


def _feistel(value: np.ndarray, keys: list[np.ndarray], half: int) -> np.ndarray:
    bits, low = _U64(half), _U64((1 << half) - 1)
    left, right = value >> bits, value & low
    for key in keys:
        left, right = right, left ^ (mix64(right ^ key) & low)
    return (left << bits) | right


@dataclass(frozen=True)
class RowStream:
    """Items of a data set in the order in which batches take them: epoch after epoch, each in its own order.

    Batch ``n`` is a pure function of ``(seed, n, batch_size)``. One pass is ``total`` items, ``len`` batches;
    the last batch of a pass may be shorter. A pass beyond the first goes on with the following epochs.
    """

    size: int
    """Items of the data set."""
    batch_size: int
    """Items per batch, over all ranks."""
    total: int
    """Items of one pass: ``epochs * size``, or any other number."""
    seed: int = 0
    shuffle: bool = True

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def items(self, n: int) -> np.ndarray:
        """(up to batch_size,) int64: the items of batch ``n``."""
        run, batch = divmod(n, len(self))
        first = run * self.total + batch * self.batch_size
        stop = run * self.total + min((batch + 1) * self.batch_size, self.total)
        epoch, position = np.divmod(np.arange(first, stop), self.size)
        return permute(position, self.size, self.seed, epoch) if self.shuffle else position


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the item with this text belongs to the validation part.

    Our choice: by a hash of the text, so that copies fall on the same side and adding files moves nothing.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64
