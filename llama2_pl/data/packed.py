"""Numbered batches of packed rows, for the corpus mix and for dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llama2_pl.data.batches import Batch
from llama2_pl.data.mixing import CorpusMix
from llama2_pl.data.packing import RowPlan, Segment, cut_row, fill_rows
from llama2_pl.data.sampling import RowStream, mix64
from llama2_pl.data.token_file import TokenFile


@dataclass(frozen=True)
class MixedBatches:
    """Batches of a corpus mix. Llama 2 §2.1-2.2. Global batch n holds sequences [n B, (n + 1) B) of the mix."""

    files: Sequence[TokenFile]
    mix: CorpusMix
    seq_len: int
    batch_size: int
    num_batches: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, n: int) -> Batch:
        """(batch_size / world, seq_len) rows of this rank."""
        first = n * self.batch_size
        draws = [self.mix.draw(s) for s in range(first + self.rank, first + self.batch_size, self.world)]
        rows = [cut_row(self.files[d.source], d.number, self.seq_len, self._seeds[d.source]) for d in draws]
        return fill_rows(rows, self.seq_len)

    @cached_property
    def _seeds(self) -> list[int]:
        # A seed of its own for each source: two of equal size would otherwise be read in the same order.
        return [int(mix64(self.mix.seed, source) >> np.uint64(1)) for source in range(len(self.files))]


@dataclass(frozen=True)
class DocumentSet:
    """Documents of one or more token files, each cut to ``seq_len`` tokens, under one numbering."""

    files: Sequence[TokenFile]
    file_of: np.ndarray
    """(documents,) index into files."""
    start_of: np.ndarray
    """(documents,) first token in that file."""
    lengths: np.ndarray
    """(documents,) tokens, at most seq_len."""

    def segment(self, document: int) -> Segment:
        start = int(self.start_of[document])
        return Segment(self.files[self.file_of[document]], start, start + int(self.lengths[document]))


@dataclass(frozen=True)
class WholeBatches:
    """Batches of rows of whole documents. Llama 2 §3.1.

    Every row comes once per epoch. The last batch of a run may be shorter; where its rows do not divide among the
    ranks it is filled up with rows of padding, which have no target and so weigh nothing.
    """

    documents: DocumentSet
    plan: RowPlan
    stream: RowStream
    seq_len: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, n: int) -> Batch:
        """(up to batch_size / world, seq_len) rows of this rank."""
        rows = [[self.documents.segment(d) for d in self.plan.row(int(r))] for r in self.stream.items(n)]
        rows += [[]] * (-len(rows) % self.world)
        return fill_rows(rows[self.rank :: self.world], self.seq_len)
