"""Scores of a reward model, read without padding and with each prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama2_pl.data.batches import Packing
from llama2_pl.data.unpadded import ROWS_IN_ONE, Family, families, on_device, pack_padded, read, takes_trees
from llama2_pl.model.heads import ScalarModel
from llama2_pl.model.parallel import is_sharded, largest_over_ranks


def score_padded(model: ScalarModel, tokens: Tensor, lengths: Tensor, packing: Packing | None) -> Tensor:
    """Right-padded dialogues (R, T), lengths (R,) -> (R,) linear scores; the same with a packing, in less time.

    Each is the value at the row's last real token. Our choice: the paper does not say where it pools; the last token,
    EOS, has seen the whole dialogue.
    """
    last = torch.arange(len(lengths), device=lengths.device) * tokens.shape[1] + lengths - 1
    return read(model, tokens, packing, last)


class ScorePass(NamedTuple):
    """Rows (N,) that are read together, their first `width` columns, and how they are packed."""

    rows: Tensor
    width: int
    packing: Packing | None


def score_passes(tokens: Tensor, lengths: Tensor, max_batch: int, device: torch.device) -> list[ScorePass]:
    """Right-padded dialogues (R, T), lengths (R,) in passes over about `max_batch` rows, for networks on a device.

    On a CPU rows that begin alike, as the answers to one prompt, share a pass that reads the beginning once; elsewhere
    each row is read by itself, beside others of like length. The host waits for the rows to plan it.
    """
    host, counts = tokens.cpu().numpy(), lengths.cpu().numpy()
    if takes_trees(device):
        return [_score_pass(group, counts) for group in _in_groups(host, counts, max_batch)]
    order = torch.from_numpy(counts.argsort(kind="stable"))
    return [ScorePass(rows, int(counts[rows.numpy()].max()), None) for rows in order.split(max_batch)]


@torch.no_grad()
def score_rows(model: ScalarModel, tokens: Tensor, lengths: Tensor, passes: list[ScorePass]) -> Tensor:
    """Right-padded dialogues (R, T), lengths (R,), as planned -> (R,) linear scores."""
    device = next(model.parameters()).device
    wanted = largest_over_ranks(len(passes), device) if is_sharded(model) else len(passes)
    found = torch.zeros(len(tokens), device=device, dtype=torch.float32)
    again = passes[:1] * (wanted - len(passes))  # a rank with fewer goes along
    for rows, width, packing in [*passes, *again]:
        part, counts = tokens[rows, :width].to(device), lengths[rows].to(device)
        found[rows.to(device)] = score_padded(model, part, counts, on_device(packing, device))
    return found


def _in_groups(tokens: np.ndarray, lengths: np.ndarray, max_batch: int) -> list[list[Family]]:
    """Families of rows, short ones first, in groups of at most `max_batch` rows or of one family."""
    related = families(tokens, lengths, ROWS_IN_ONE * tokens.shape[1])
    related.sort(key=lambda family: int(lengths[list(family.rows)].max()))
    groups: list[list[Family]] = []
    room = 0
    for family in related:
        if room < len(family.rows):
            groups.append([])
            room = max_batch
        groups[-1].append(family)
        room -= len(family.rows)
    return groups


def _score_pass(group: Sequence[Family], lengths: np.ndarray) -> ScorePass:
    rows = np.array([row for family in group for row in family.rows])
    width, place = int(lengths[rows].max()), iter(range(len(rows)))
    mine = [family._replace(rows=tuple(next(place) for _ in family.rows)) for family in group]
    capacity = max(ROWS_IN_ONE * width, *(family.size for family in group))
    return ScorePass(torch.from_numpy(rows), width, pack_padded(lengths[rows], width, capacity, mine))


@torch.no_grad()
def score_responses(model: ScalarModel, rows: Sequence[Sequence[int]], *, max_batch: int = 64) -> Tensor:
    """Dialogues as ids -> (R,) float32 scores on the CPU, read at each row's last token; see `score_passes`.

    Args:
        model: the reward model.
        rows: each a dialogue that ends with an answer, as `encode_dialog` gives it; none empty.
        max_batch: about how many rows are read together.
    """
    if any(len(row) == 0 for row in rows):
        raise ValueError("cannot score an empty row; give the ids of prompt and response")
    if not rows:
        return torch.zeros(0)
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    was_training = model.training
    model.eval()
    try:
        passes = score_passes(tokens, lengths, max_batch, next(model.parameters()).device)
        return score_rows(model, tokens, lengths, passes).cpu()
    finally:
        model.train(was_training)


def score_answers(model: ScalarModel, rows: Sequence[Sequence[int]], *, max_batch: int = 64) -> Tensor:
    """The same, read as far as the model's context goes, for answers that were sampled within one as long.

    The dialogue of an answer of the greatest length has a space and an EOS too many for it, or a token more that its
    text encodes to. Our choice: what is beyond is not read, so that no answer is lost.
    """
    return score_responses(model, [row[: model.config.max_seq_len] for row in rows], max_batch=max_batch)
