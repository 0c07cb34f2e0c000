from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llama2_pl.data.packing import Segment, cut_row, fill_rows, pack_whole
from llama2_pl.data.token_file import TokenFile, TokenFileWriter


def token_file(path: Path, lengths: list[int]) -> TokenFile:
    """Documents of the given lengths whose tokens are all different: 0, 1, 2, ..."""
    writer = TokenFileWriter(path, 65_536, "abc")
    start = 0
    for length in lengths:
        writer.add(range(start, start + length))
        start += length
    writer.close()
    return TokenFile(path)


def tokens_of(row: list[Segment]) -> list[int]:
    return [int(t) for segment in row for t in segment.file.tokens[segment.start : segment.stop]]


@pytest.mark.parametrize("seq_len", [4, 7, 16, 50])
def test_an_epoch_holds_every_token_and_repeats_less_than_a_row(tmp_path: Path, seq_len: int) -> None:
    file = token_file(tmp_path / "f", [5, 1, 12, 9, 3])
    rows = -(-30 // seq_len)
    for epoch in range(3):
        seen = Counter(
            t for r in range(rows) for t in tokens_of(cut_row(file, epoch * rows + r, seq_len, seed=1))
        )
        assert set(seen) == set(range(30))
        assert sum(seen.values()) - 30 < seq_len


def test_the_cuts_and_the_order_move_from_epoch_to_epoch(tmp_path: Path) -> None:
    file = token_file(tmp_path / "f", [40, 60])
    epochs = [[tokens_of(cut_row(file, e * 10 + r, 10, seed=0)) for r in range(10)] for e in range(3)]
    assert len({tuple(row[0] for row in rows) for rows in epochs}) == 3


def test_segments_end_where_documents_end(tmp_path: Path) -> None:
    file = token_file(tmp_path / "f", [5, 1, 12, 9, 3])
    document_of = np.repeat(np.arange(5), [5, 1, 12, 9, 3])
    for number in range(40):
        row = cut_row(file, number, 11, seed=4)
        assert sum(s.stop - s.start for s in row) == 11
        for segment in row:
            assert len(set(document_of[segment.start : segment.stop])) == 1
        for a, b in pairwise(row):
            assert document_of[a.stop - 1] != document_of[b.start] or b.start == 0


def test_filled_rows_by_hand(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "f", 500, "abc", with_mask=True)
    writer.add([1, 10, 11, 2], [False, False, True, True])
    writer.add([1, 12, 2], [True, True, True])
    writer.close()
    file = TokenFile(tmp_path / "f")
    batch = fill_rows([[Segment(file, 0, 4), Segment(file, 4, 7)], [Segment(file, 5, 7)], []], seq_len=8)
    assert batch.tokens.tolist() == [[1, 10, 11, 2, 1, 12, 2, 0], [12, 2] + [0] * 6, [0] * 8]
    # a document's first token is no target, though its mask says so; padding is none either
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 1, 0, 1, 1, 0], [0, 1] + [0] * 6, [0] * 8]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1], [0, 0] + [-1] * 6, [-1] * 8]
    assert [str(a.dtype) for a in batch] == ["torch.int64", "torch.bool", "torch.int32"]


def test_without_a_mask_all_but_first_tokens_are_targets(tmp_path: Path) -> None:
    file = token_file(tmp_path / "f", [3, 4])
    batch = fill_rows([[Segment(file, 0, 3), Segment(file, 3, 7)]], seq_len=7)
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0, 1, 1, 1]]


def test_whole_documents_are_packed_best_fit_by_hand() -> None:
    # longest first: 10 fills a row; 7 and 6 begin one each; 4 fits beside 6 only, 3 beside 7 only
    plan = pack_whole(np.array([3, 6, 10, 7, 4]), seq_len=10, seed=0)
    assert sorted(sorted(plan.row(r).tolist()) for r in range(len(plan))) == [[0, 3], [1, 4], [2]]


def test_every_document_is_in_one_row_and_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(5, 400, size=3000)
    plan = pack_whole(lengths, seq_len=512, seed=7)
    assert sorted(plan.documents.tolist()) == list(range(3000))
    sums = [int(lengths[plan.row(r)].sum()) for r in range(len(plan))]
    assert max(sums) <= 512
    assert lengths.sum() / (len(plan) * 512) > 0.95


def test_the_plan_follows_from_the_seed() -> None:
    lengths = np.random.default_rng(1).integers(5, 100, size=200)
    plans = [pack_whole(lengths, 128, seed).documents.tolist() for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
