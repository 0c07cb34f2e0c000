"""The corpus mix: which source each training sequence comes from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from llama2_pl.data.sampling import mix64

CYCLE = 1000


class Draw(NamedTuple):
    """Sequence s of the mix is the ``number``-th sequence drawn from ``source``."""

    source: int
    number: int


class SourceLedger(NamedTuple):
    """What a run has taken from one source."""

    share: float
    sequences: int
    tokens: int
    epochs: float


class CorpusMix:
    """Sequences of several sources in fixed shares, with random access.

    Llama 2 §2.1 up-samples "the most factual sources" and gives no shares; Llama 1's Table 1 does.

    Our choice: cycles of 1000 sequences with exact quotas (largest remainder), each cycle in an order of its own.
    Independent draws would be off by 1 % after 2,000 sequences; quotas are off by at most 0.1 % after any cycle.
    """

    def __init__(self, weights: Mapping[str, float], seed: int = 0) -> None:
        self.names = list(weights)
        self.seed = seed
        self.quotas = largest_remainder(weights)
        self._slots = np.repeat(np.arange(len(self.names)), self.quotas)

    def draw(self, sequence: int) -> Draw:
        """Source of sequence number ``sequence`` and which of that source's sequences it is."""
        cycle, slot = divmod(sequence, CYCLE)
        sources, numbers = _cycle(self.seed, cycle, self._slots.tobytes())
        source = int(sources[slot])
        return Draw(source, cycle * int(self.quotas[source]) + int(numbers[slot]))

    def counts(self, sequences: int) -> np.ndarray:
        """(sources,) how many of the first ``sequences`` come from each source."""
        cycle, slot = divmod(sequences, CYCLE)
        begun = _cycle(self.seed, cycle, self._slots.tobytes())[0][:slot]
        return cycle * self.quotas + np.bincount(begun, minlength=len(self.names))

    def ledger(self, sequences: int, tokens: Mapping[str, int], seq_len: int) -> dict[str, SourceLedger]:
        """Realised share, tokens and epochs of each source after ``sequences`` sequences of ``seq_len`` tokens.

        ``tokens`` holds the unique tokens of each source.
        """
        counts = self.counts(sequences).tolist()
        return {
            name: SourceLedger(n / max(sequences, 1), n, n * seq_len, n * seq_len / tokens[name])
            for name, n in zip(self.names, counts, strict=True)
        }


def largest_remainder(weights: Mapping[str, float]) -> np.ndarray:
    """(sources,) int64: how many of ``CYCLE`` sequences each source gets; they add up exactly."""
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"sources.{name}.weight is {weight}: give a positive number, or remove the source"
            )
    values = np.array(list(weights.values()), dtype=np.float64)
    exact = values / values.sum() * CYCLE
    quotas = np.floor(exact).astype(np.int64)
    order = np.argsort(quotas - exact, kind="stable")
    quotas[order[: CYCLE - int(quotas.sum())]] += 1
    for name, quota, share in zip(weights, quotas, exact / CYCLE, strict=True):
        if quota == 0:
            raise ValueError(
                f"sources.{name}.weight is {share:.5%} of the mix and would never be drawn: "
                f"raise it to at least {1 / CYCLE:.1%} or remove the source"
            )
    return quotas


@lru_cache(maxsize=8)
def _cycle(seed: int, cycle: int, slots: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(CYCLE,) source of each slot of a cycle, and (CYCLE,) how often it came before in that cycle."""
    sources = np.frombuffer(slots, dtype=np.int64)
    sources = sources[np.argsort(mix64(seed, cycle, np.arange(CYCLE)), kind="stable")]
    by_source = np.argsort(sources, kind="stable")
    numbers = np.empty(CYCLE, dtype=np.int64)
    starts = np.searchsorted(sources[by_source], sources[by_source])
    numbers[by_source] = np.arange(CYCLE) - starts
    return sources, numbers
