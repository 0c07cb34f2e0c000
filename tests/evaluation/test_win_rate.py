"""Win rates by hand."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.evaluation.win_rate import win_rate


def test_wins_ties_and_losses_are_counted_by_hand():
    result = win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0, 4.5])
    assert (result["wins"], result["ties"], result["losses"]) == (2, 1, 1)
    assert result["mean"] == pytest.approx(0.625)


def test_bootstrap_and_wilson_agree_on_many_decided_prompts():
    a = torch.cat([torch.ones(700), torch.zeros(300)])
    result = win_rate(a, 1 - a)
    # Wilson by hand: z = 1.96, centre (0.7 + 1.9208 / 1000) / 1.0038416, half width 0.02836
    assert result["wilson_low"] == pytest.approx(0.6709, abs=5e-4)
    assert result["wilson_high"] == pytest.approx(0.7276, abs=5e-4)
    assert result["low"] == pytest.approx(result["wilson_low"], abs=0.004)
    assert result["high"] == pytest.approx(result["wilson_high"], abs=0.004)


@pytest.mark.parametrize(
    ("a", "ends"), [(1.0, [0.8389, 1.0]), (-1.0, [0.0, 0.1611]), (0.0, [0.2993, 0.7007])]
)
def test_twenty_prompts_that_came_out_alike_leave_a_doubt(a, ends):
    # Wilson by hand: 20 / (20 + 3.8415) = 0.8389; of ties alone half a width of 1.96 sqrt(1/80 + 3.8415/1600) / 1.1921
    result = win_rate([a] * 20, [0.0] * 20)
    assert result["mean"] == (1 + a) / 2
    assert [result["low"], result["high"]] == pytest.approx(ends, abs=5e-5)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="A has 2 scores and B 1"):
        win_rate([1.0, 2.0], [1.0])


def test_several_answers_are_compared_each_with_each_and_prompts_are_what_counts():
    # prompt 1: 1 and 3 against 2 and 0: lost, won, won, won. prompt 2: 5 and 5 against 5 and 9: tie, lost, tie, lost.
    result = win_rate(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([[2.0, 0.0], [5.0, 9.0]]))
    assert (result["wins"], result["ties"], result["losses"], result["count"]) == (3, 2, 3, 2)
    assert result["mean"] == (3 / 4 + 1 / 4) / 2
    assert (result["low"], result["high"]) == (0.25, 0.75)  # two prompts resampled
