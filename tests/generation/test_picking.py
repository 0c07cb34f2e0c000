"""Choosing tokens in blocks and from the likeliest first, against whole running sums and whole sorts in float64."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.generation import picking
from llama2_pl.generation.picking import CANDIDATES, invert, nucleus, pick_tokens


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1000, 4096])
def test_blocks_choose_what_the_whole_running_sum_does(vocabulary):
    generator = torch.Generator().manual_seed(0)
    # Whole numbers below 2^24: every sum is exact, in whichever order.
    weights = torch.randint(0, 5, (200, vocabulary), generator=generator).float()
    weights[:, 0] += 1
    uniforms = torch.rand(200, generator=generator)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-24
    found = invert(weights, uniforms)
    target = (uniforms.double() * weights.double().sum(-1))[:, None]
    exact = torch.searchsorted(weights.double().cumsum(-1), target, right=True).squeeze(1)
    # The target itself is rounded to float32: where it falls on an edge, the token beside it may be chosen.
    near = (weights.double().cumsum(-1) - target).abs().amin(-1) < 1e-3
    assert torch.equal(found[~near], exact[~near]) and (~near).sum() >= 190
    assert (weights.gather(1, found[:, None]) > 0).all()


def test_a_weight_of_zero_is_never_chosen_wherever_it_lies():
    weights = torch.zeros(3, 300)
    weights[0, 299], weights[1, 0], weights[2, 128] = 1.0, 1.0, 1.0
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert invert(weights, torch.full((3,), uniform)).tolist() == [299, 0, 128]


def test_a_target_that_rounding_carries_to_the_total_chooses_the_last_token_that_adds_something():
    sums = torch.tensor([[0.0, 0.25, 1.0, 1.0]])
    for target, expected in ((1.5, 2), (1.0, 2), (0.25, 2), (0.0, 1), (-1e-9, 1)):
        assert picking._first_above(sums, torch.tensor([[target]])).item() == expected
    # Added one by one to 1 each 5e-8 is lost, together they are not: two sums of the same numbers.
    weights = torch.full((1, 64), 5e-8)
    weights[0, 0] = 1.0
    assert invert(weights, torch.tensor([1 - 2**-24])).item() < 64


def test_frequencies_over_many_blocks_match_the_distribution():
    weights = torch.arange(1, 301).float()
    uniforms = (torch.arange(200_000) + 0.5) / 200_000
    counts = invert(weights.expand(200_000, -1), uniforms).bincount(minlength=300)
    assert torch.allclose(counts / 200_000, weights / weights.sum(), atol=2 / 200_000)


def whole_nucleus(row: list[float], top_p: float) -> list[bool]:
    """By a stable sort of all."""
    kept, before, total = [False] * len(row), 0.0, sum(row)
    for i in sorted(range(len(row)), key=lambda i: -row[i]):
        kept[i] = before <= top_p * total
        before += row[i]
    return kept


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_a_nucleus_larger_than_the_candidates_is_that_of_the_whole_sort(spread, top_p):
    generator = torch.Generator().manual_seed(1)
    weights = (spread * torch.randn(6, 1400, generator=generator).double()).exp()
    weights[::2] = weights[::2].round(decimals=1)  # with equals at the edge
    kept = nucleus(weights, top_p) > 0
    assert kept.tolist() == [
        [k and w > 0 for k, w in zip(whole_nucleus(row, top_p), row, strict=True)] for row in weights.tolist()
    ]
    assert spread > 1 or kept.sum(-1).min() > CANDIDATES


def test_rows_whose_nucleus_is_small_are_not_sorted(monkeypatch):
    sorted_rows = []
    edge_in = picking._edge_in

    def counted(ordered: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sorted_rows.append(tuple(ordered.shape))
        return edge_in(ordered, limit)

    monkeypatch.setattr(picking, "_edge_in", counted)
    weights = torch.ones(5, 1000)
    weights[:4, 7] = 1e6
    nucleus(weights, 0.9)
    assert sorted_rows == [(5, CANDIDATES), (1, 1000)]


def test_logprobs_are_those_at_temperature_one():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0
    for temperature in (0.0, 1.0, 2.0):
        token, logprob = pick_tokens(logits, torch.tensor([0.2]), temperature, 1.0)
        assert token.tolist() == [0] and logprob.exp().item() == pytest.approx(0.5)
