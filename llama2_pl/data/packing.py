"""The one packer: documents of token files into rows of ``seq_len`` tokens.

Pretraining concatenates and cuts: row r of an epoch is a slice of the token stream, found in closed form.
SFT keeps dialogues whole. Llama 2 §3.1 concatenates all prompts and answers to fill 4096 tokens and does not say
what happens at the end of a row. Our choice: no dialogue is cut in two, since attention stays inside a document
and the second half would be answers to a question the model cannot see; rows have some padding instead.

A row is a list of segments, each a stretch of one document; ``fill_rows`` makes arrays of either kind.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from llama2_pl.data.batches import Batch
from llama2_pl.data.sampling import mix64, permute
from llama2_pl.data.token_file import TokenFile

PADDING_ID = 0
WINDOW = 16_384
BLOCK = 1024


class Segment(NamedTuple):
    """Tokens ``start:stop`` of a token file, all of one document."""

    file: TokenFile
    start: int
    stop: int


def cut_row(file: TokenFile, number: int, seq_len: int, seed: int) -> list[Segment]:
    """The ``number``-th row drawn from a file whose documents are concatenated and cut; exactly ``seq_len`` tokens.

    Llama 2 §2.2. Our choice: the stream is a ring that each epoch enters at another place and cuts into
    ceil(tokens / seq_len) rows, drawn in an order of that epoch. So each token comes once per epoch, fewer than
    ``seq_len`` of them twice, and the cuts move from epoch to epoch.
    """
    tokens = len(file.tokens)
    rows = -(-tokens // seq_len)
    epoch, position = divmod(number, rows)
    row = int(_order(position // BLOCK, rows, seed, epoch)[position % BLOCK])
    start = (_entry(seed, epoch, tokens) + row * seq_len) % tokens
    segments: list[Segment] = []
    left = seq_len
    while left:
        stop = min(start + left, tokens)
        segments += _split_at_documents(file, start, stop)
        left -= stop - start
        start = 0
    return segments


@lru_cache(maxsize=256)
def _order(block: int, rows: int, seed: int, epoch: int) -> np.ndarray:
    """Up to ``BLOCK`` places of an epoch's order: together they cost little more than one."""
    return permute(np.arange(block * BLOCK, min((block + 1) * BLOCK, rows)), rows, seed, epoch)


@lru_cache(maxsize=256)
def _entry(seed: int, epoch: int, tokens: int) -> int:
    return int(mix64(seed, epoch, tokens)) % tokens


def _split_at_documents(file: TokenFile, start: int, stop: int) -> list[Segment]:
    first, last = np.searchsorted(file.offsets, [start, stop], side="right")
    inner = file.offsets[first:last]
    bounds = [start, *inner[inner < stop].tolist(), stop]
    return [Segment(file, a, b) for a, b in pairwise(bounds)]


class RowPlan(NamedTuple):
    """Which documents share a row: row r holds ``documents[starts[r]:starts[r + 1]]``."""

    documents: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, r: int) -> np.ndarray:
        return self.documents[self.starts[r] : self.starts[r + 1]]


def pack_whole(lengths: np.ndarray, seq_len: int, seed: int) -> RowPlan:
    """Rows that hold whole documents: best fit, longest first, in shuffled windows of 16,384 documents.

    ``lengths`` (documents,) int64, none above ``seq_len``. The same input and seed give the same plan.
    """
    assert lengths.max(initial=0) <= seq_len
    order = permute(np.arange(len(lengths)), len(lengths), seed)
    rows: list[list[int]] = []
    for begin in range(0, len(order), WINDOW):
        rows += _best_fit(order[begin : begin + WINDOW], lengths, seq_len)
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return RowPlan(np.array([d for row in rows for d in row], dtype=np.int64), starts)


def _best_fit(documents: np.ndarray, lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Each document, longest first, goes to the fullest row that still has room for it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for document in documents[np.argsort(-lengths[documents], kind="stable")].tolist():
        length = int(lengths[document])
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([document])
            left, row = capacity, len(rows) - 1
        else:
            left, row = room.pop(at)
            rows[row].append(document)
        insort(room, (left - length, row))
    return rows


def fill_rows(rows: Sequence[Sequence[Segment]], seq_len: int) -> Batch:
    """(rows, seq_len) arrays. The first token of a segment is never a target: nothing precedes it in its row."""
    shape = (len(rows), seq_len)
    tokens = np.full(shape, PADDING_ID, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=bool)
    document_ids = np.full(shape, -1, dtype=np.int32)
    for r, segments in enumerate(rows):
        at = 0
        for number, (file, start, stop) in enumerate(segments):
            end = at + stop - start
            tokens[r, at:end] = file.tokens[start:stop]
            loss_mask[r, at:end] = True if file.mask is None else file.mask[start:stop]
            loss_mask[r, at] = False
            document_ids[r, at:end] = number
            at = end
    return Batch(torch.from_numpy(tokens), torch.from_numpy(loss_mask), torch.from_numpy(document_ids))
