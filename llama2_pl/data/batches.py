"""The three batches that data modules hand to training: what each array means and its shape."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Packed token rows, for pretraining and SFT.

    Llama 2 §2.2 (4096-token rows), §3.1 (loss on answers only). Aligned, not shifted: the objective shifts once.

    Attributes:
        tokens: (B, T) int64; padding is id 0.
        loss_mask: (B, T) bool; True where the token itself is a target, so never on a document's first token or on
            padding.
        document_ids: (B, T) int32; which document of its row a token belongs to, counted from 0; -1 on padding. None:
            every row is one document, with or without padding behind it. See `without_needless_mask`.
    """

    tokens: Tensor
    loss_mask: Tensor
    document_ids: Tensor | None


def without_needless_mask(batch: Batch) -> Batch:
    """The batch, with document_ids None where every row is one document: plain causal attention gives the same.

    Padding stands at the end of rows, so no token that counts reads it. Asked while the batch is on the host; on a
    GPU the question would have to wait for the answer.
    """
    ids = batch.document_ids
    if ids is None or not ((ids == ids[:, :1]) | (ids < 0)).all():
        return batch
    return batch._replace(document_ids=None)


class Packing(NamedTuple):
    """Where the N real tokens of padded rows (B, T) lie in fewer rows (R, W), which hold several of them each.

    Rows that begin alike can share those tokens: a document of several branches. See llama2_pl.data.unpadded.
    """

    source: Tensor
    """(N,) int64; places in the padded rows, flattened."""
    target: Tensor
    """(N,) int64; places in the packed rows, flattened; one for all where rows share a token."""
    document_ids: Tensor
    """(R, W) int32; which document of its packed row a token belongs to, counted from 0; -1 where nothing lies."""
    positions: Tensor
    """(R, W) int64; each token's place in its padded row."""
    longest: int
    """Tokens of the longest padded row, which a network must be able to read."""
    branches: Tensor | None
    """(R, W) int32; 0 what all rows of a document share, else the row's number in it. None: one row to a document."""


class PreferenceBatch(NamedTuple):
    """N pairs as 2N right-padded rows: all chosen ones, then all rejected ones.

    Llama 2 §3.2.1 (four ratings, safety bins), §3.2.2.

    Attributes:
        tokens: (2N, T) int64, T the longest row rounded up to a multiple of 8; padding is id 0.
        lengths: (2N,) int64; real tokens of each row.
        rating: (N,) int64; 0 significantly better, 1 better, 2 slightly better, 3 negligibly better or unsure; -1
            unrated, in validation (in training the data module's ``default_rating`` stands in).
        is_safe: (2N,) float32; 1 safe, 0 unsafe, nan unknown.
        source: (N,) int64; an index into the data module's ``sources``.
        packing: how the rows are read without their padding; None: as they are.
    """

    tokens: Tensor
    lengths: Tensor
    rating: Tensor
    is_safe: Tensor
    source: Tensor
    packing: Packing | None = None


class PromptBatch(NamedTuple):
    """B prompts to be answered. Llama 2 §3.2.3; IS_SAFETY of its reward rule.

    Attributes:
        prompts: B lists of ids, of different lengths, each ending with ``[/INST]``.
        is_safety: (B,) bool; True where a prompt may elicit unsafe output.
        index: (B,) int64; an index into the data module's ``rows``.
    """

    prompts: list[list[int]]
    is_safety: Tensor
    index: Tensor
