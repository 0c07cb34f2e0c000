"""Padded rows laid into fewer ones: each token reads what it read before, and little is read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2_pl.data.batches import Packing
from llama2_pl.data.unpadded import Family, families, pack_padded, pack_pairs, takes_trees, widest

# few different tokens, so that rows begin alike
ROWS = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=14), min_size=1, max_size=24)


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for n, row in enumerate(rows):
        tokens[n, : len(row)] = row
    return tokens, lengths


def places(packing: Packing, row: int, length: int, width: int) -> list[int]:
    """Where a row's tokens lie, in their order."""
    found = dict(zip(packing.source.tolist(), packing.target.tolist(), strict=True))
    return [found[row * width + t] for t in range(length)]


def check(packing: Packing, lengths: np.ndarray, width: int) -> None:
    """By the rule of Transformer: a token reads the trunk of its document and its own branch, up to itself."""
    ids, branches = packing.document_ids, packing.branches
    ids, branches = ids.tolist(), (torch.zeros_like(ids) if branches is None else branches).tolist()
    packed = len(ids[0])
    assert len(packing.source) == lengths.sum() == len(set(packing.source.tolist()))
    for row, length in enumerate(lengths.tolist()):
        mine = places(packing, row, length, width)
        assert [packing.positions.flatten()[place].item() for place in mine] == list(range(length))
        for t, place in enumerate(mine):
            r, at = divmod(place, packed)
            may_read = [
                r * packed + key
                for key in range(at + 1)
                if ids[r][key] == ids[r][at] and branches[r][key] in (0, branches[r][at])
            ]
            assert may_read == mine[: t + 1]


@given(ROWS, st.integers(0, 40))
def test_every_token_reads_what_it_reads_in_its_padded_row(rows: list[list[int]], more: int) -> None:
    tokens, lengths = padded(rows)
    width = tokens.shape[1]
    related = families(tokens, lengths, width + more)
    assert sorted(row for family in related for row in family.rows) == list(range(len(rows)))
    for family in related:
        trunks = {tuple(rows[row][: family.common]) for row in family.rows}
        own = sum(len(rows[row]) - family.common for row in family.rows)
        assert len(trunks) == 1 and family.size == family.common + own <= width + more
    for packing in (
        pack_padded(lengths, width, width + more, related),
        pack_padded(lengths, width, width + more),
        pack_pairs(tokens, lengths),
    ):
        if packing is not None:
            check(packing, lengths, width)
            assert packing.document_ids.numel() <= 0.9 * tokens.size


def test_the_prompt_of_a_pair_is_read_once() -> None:
    prompt, other = list(range(10, 22)), list(range(30, 40))
    pairs = [[*prompt, 3, 4, 2], [*other, 7, 2], [*prompt, 5, 2], [*other, 8, 9, 2]]
    tokens, lengths = padded(pairs)
    related = families(tokens, lengths, 30)
    assert related == [Family((0, 2), 12, 17), Family((1, 3), 10, 15)]
    packing = pack_pairs(tokens, lengths)
    assert packing is not None and packing.branches is not None
    # the longest pair has 17 tokens, no row more: rows of 17 hold one pair each
    assert packing.document_ids.shape == (2, 17) and int((packing.document_ids >= 0).sum()) == 17 + 15
    longer = next(r for r in (0, 1) if (packing.document_ids[r] >= 0).all())
    assert packing.branches[longer].tolist() == 12 * [0] + 3 * [1] + 2 * [2]
    assert packing.positions[longer].tolist() == [*range(15), 12, 13]
    assert packing.longest == 15
    apart = pack_pairs(tokens, lengths, trees=False)  # 15, 13, 14 and 13 tokens, rows of 15
    assert apart is None


def test_without_trees_rows_stay_whole_and_no_wider_than_the_longest() -> None:
    lengths = np.array([16, 6, 7, 3])
    packing = pack_pairs(np.ones((4, 16), dtype=np.int64), lengths, trees=False)
    assert packing is not None and packing.branches is None and packing.document_ids.shape == (2, 16)
    check(packing, lengths, 16)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (widest(16, gpu), widest(16, cpu)) == (16, 64) and takes_trees(cpu) and not takes_trees(gpu)


def test_packed_rows_are_aligned_where_the_limit_allows() -> None:
    widths = [pack_padded(np.array([10, 5, 4]), 10, most).document_ids.shape[1] for most in (20, 24, 64)]
    assert widths == [19 + 1, 24, 24]  # 19 tokens in one row


@pytest.mark.parametrize(
    "case",
    {
        "too little alike": ([[1, 9, 9, 9, 9, 9, 9, 9], [1, 8, 8, 8, 8, 8, 8, 8]], 99, 2),
        "no room for both": ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]], 6, 2),
        "room for both": ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]], 7, 1),
        "the same twice": ([[1, 2, 3], [1, 2, 3]], 9, 1),
        "one begins the other": ([[1, 2], [1, 2, 3]], 9, 1),
        # four begin with 1 2 3 4 5 6; what the fifth shares with them, 1 2, would cost them 16 tokens more
        "a stranger": ([*([1, 2, 3, 4, 5, 6, n] for n in (6, 7, 8, 9)), [1, 2, 7, 7]], 99, 2),
    }.items(),
    ids=lambda case: case[0],
)
def test_rows_join_where_it_saves_work(case) -> None:
    rows, most, expected = case[1]
    assert len(families(*padded(rows), most)) == expected


def test_rows_that_would_save_less_than_a_tenth_stay_as_they_are() -> None:
    assert pack_padded(np.array([8, 8, 8, 8]), 8, 8) is None
    assert pack_padded(np.array([0, 0]), 8, 8) is None
    assert pack_padded(np.array([8, 4, 4, 8]), 8, 8) is not None


def test_a_row_of_no_tokens_is_not_read() -> None:
    packing = pack_padded(np.array([4, 0, 4, 0]), 8, 8)
    assert packing is not None and sorted(packing.source.tolist()) == [0, 1, 2, 3, 16, 17, 18, 19]
    assert packing.document_ids.shape == (1, 8) and packing.branches is None


def test_rows_are_filled_evenly() -> None:
    # 64 tokens hold six of them; two rows of five and four, 50 wide, are narrower than one of six beside one of three
    packing = pack_padded(np.array([10] * 9), 16, 64)
    assert packing is not None and packing.document_ids.shape == (2, 56)
