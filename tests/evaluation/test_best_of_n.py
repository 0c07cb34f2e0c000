"""Maximum and median reward against N, against enumeration of subsets and by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from llama2_pl.evaluation import best_of_n


def test_best_and_median_of_two_out_of_three_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    # subsets {1,2} {1,3} {2,3}: maxima 2, 3, 3; medians 1.5, 2, 2.5
    assert best_of_n.expected_max(scores, 2).item() == pytest.approx(8 / 3)
    assert best_of_n.expected_median(scores, 2).item() == pytest.approx(2.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_expectations_equal_an_enumeration_of_all_subsets(n):
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, best, median in zip(
        scores.tolist(),
        best_of_n.expected_max(scores, n).tolist(),
        best_of_n.expected_median(scores, n).tolist(),
        strict=True,
    ):
        subsets = list(itertools.combinations(row, n))
        assert best == pytest.approx(statistics.mean(max(subset) for subset in subsets))
        assert median == pytest.approx(statistics.mean(statistics.median(subset) for subset in subsets))


def test_gold_of_the_best_equals_an_enumeration_of_all_subsets():
    generator = torch.Generator().manual_seed(1)
    reward, gold = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator).double()
    expected = []
    for r, g in zip(reward.tolist(), gold.tolist(), strict=True):
        subsets = itertools.combinations(range(5), 3)
        expected.append(statistics.mean(g[max(subset, key=lambda i: r[i])] for subset in subsets))
    assert best_of_n.expected_gold_of_best(reward, gold, 3).tolist() == pytest.approx(expected)


def test_maximum_never_falls_and_median_stays_for_symmetric_scores():
    scores = torch.linspace(-1, 1, 9).repeat(4, 1)
    curves = best_of_n.reward_against_n(scores)
    assert curves["n"] == [1, 2, 4, 8, 9]
    assert curves["max"] == sorted(curves["max"]) and curves["max"][-1] == pytest.approx(1.0)
    assert curves["median"] == pytest.approx([0.0] * 5, abs=1e-7)


def test_the_reward_of_taken_samples_is_that_of_the_best_that_ended_else_the_lowest_by_hand():
    scores = torch.tensor([[9.0, 2.0, 1.0], [8.0, 5.0, 4.0]])
    ended = torch.tensor([[False, True, True], [False, False, False]])
    assert best_of_n.reward_of_taken(scores, ended, 3) == pytest.approx((2 + 4) / 2)
    # two of three: {9, 2} {9, 1} {2, 1} give 2, 1, 2; nothing of the second prompt ends
    assert best_of_n.reward_of_taken(scores, ended, 2) == pytest.approx((5 / 3 + 4) / 2)
    assert best_of_n.reward_of_taken(scores, torch.ones(2, 3).bool(), 3) == pytest.approx((9 + 8) / 2)


def test_best_temperature_is_the_one_with_the_highest_reward():
    assert best_of_n.best_temperature({"0.6": 1.0, "1.2": 3.0, "1.5": 2.0}) == 1.2


def test_more_samples_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="n is 4 with 3 samples"):
        best_of_n.expected_max(torch.zeros(1, 3), 4)
