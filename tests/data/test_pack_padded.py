"""Padded rows laid into fewer ones: every real token once, and none where it saves little."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2_pl.data.packing import pack_padded


@given(st.lists(st.integers(0, 24), min_size=1, max_size=40), st.integers(0, 40))
def test_every_real_token_lies_in_one_place_beside_its_own_row_in_order(
    lengths: list[int], more: int
) -> None:
    width, capacity = 24, 24 + more
    packing = pack_padded(np.array(lengths), width, capacity)
    if packing is None:
        return
    real = [width * row + t for row, length in enumerate(lengths) for t in range(length)]
    assert sorted(packing.source.tolist()) == real
    ids = packing.document_ids
    assert ids.shape[1] <= capacity and ids.numel() <= 0.9 * width * len(lengths)
    # what a packed row holds under one number is one padded row, from its first token to its last
    flat = torch.full((ids.numel(),), -1)
    flat[packing.target] = packing.source
    assert torch.equal(flat >= 0, ids.flatten() >= 0)
    found = []
    for row, numbers in zip(flat.view_as(ids), ids, strict=True):
        for number in range(int(numbers.max()) + 1):
            places = row[numbers == number].tolist()
            assert places == list(range(places[0], places[0] + len(places))) and places[0] % width == 0
            found.append(places[0] // width)
    assert sorted(found) == [row for row, length in enumerate(lengths) if length]


def test_rows_that_would_save_less_than_a_tenth_stay_as_they_are() -> None:
    assert pack_padded(np.array([8, 8, 8, 8]), 8, 8) is None
    assert pack_padded(np.array([0, 0]), 8, 8) is None
    assert pack_padded(np.array([8, 4, 4, 8]), 8, 8) is not None


def test_rows_are_filled_evenly() -> None:
    # 64 tokens hold six of them; two rows of five and four are narrower than one of six beside one of three
    packing = pack_padded(np.array([10] * 9), 16, 64)
    assert packing is not None and packing.document_ids.shape == (2, 50)
