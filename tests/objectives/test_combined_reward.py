"""The piecewise reward and whitening, by hand."""

import math

import pytest
import torch

from llama2_pl.objectives.reward import LOGIT_LIMIT, combined_reward, whiten

AT_THRESHOLD = math.log(0.15 / 0.85)  # LOGIT(0.15) = -1.734601


@pytest.mark.parametrize(
    ("safety", "helpfulness", "tagged", "score", "from_safety"),
    [
        (2.0, 0.5, False, 0.5, False),  # safe answer, plain prompt: helpfulness
        (2.0, 0.5, True, 2.0, True),  # tagged prompt: safety even when safe
        (-3.0, 0.5, False, -3.0, True),  # sigmoid(-3) = 0.047 < 0.15
        (-1.0, 0.5, False, 0.5, False),  # sigmoid(-1) = 0.269 >= 0.15
        (AT_THRESHOLD + 1e-3, 0.5, False, 0.5, False),
        (AT_THRESHOLD - 1e-3, 0.5, False, AT_THRESHOLD - 1e-3, True),
        (50.0, 90.0, False, LOGIT_LIMIT, False),  # clamped where LOGIT would overflow
        (-90.0, 90.0, False, -LOGIT_LIMIT, True),
    ],
)
def test_which_model_speaks(safety, helpfulness, tagged, score, from_safety):
    got = combined_reward(torch.tensor([safety]), torch.tensor([helpfulness]), torch.tensor([tagged]))
    assert got.scores.item() == pytest.approx(score, abs=1e-6)
    assert got.from_safety.item() is from_safety


def test_without_a_safety_model_helpfulness_speaks_also_of_tagged_prompts():
    got = combined_reward(None, torch.tensor([0.5, 90.0, -4.0]), torch.tensor([True, False, False]))
    assert got.scores.tolist() == pytest.approx([0.5, LOGIT_LIMIT, -4.0])
    assert not got.from_safety.any()


def test_the_threshold_moves_the_branch():
    arguments = torch.tensor([-1.0]), torch.tensor([0.5]), torch.tensor([False])
    assert combined_reward(*arguments, threshold=0.15).scores.item() == 0.5
    assert combined_reward(*arguments, threshold=0.30).scores.item() == -1.0


def test_the_score_is_the_logit_of_the_probability():
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64)
    combined = combined_reward(logits, logits, torch.zeros(9, dtype=torch.bool)).scores
    torch.testing.assert_close(combined, torch.logit(torch.sigmoid(logits)).float())


def test_whitening_by_hand():
    # mean 2.5, population variance 1.25: (1 - 2.5) / 1.118034 = -1.341641
    got = whiten(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(got, torch.tensor([-1.341641, -0.447214, 0.447214, 1.341641]))


def test_whitening_gives_mean_0_and_std_1_over_what_counts():
    torch.manual_seed(0)
    x, mask = 5 + 3 * torch.randn(8, 20), torch.rand(8, 20) < 0.5
    got = whiten(x, mask)
    assert got[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert got[mask].std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert (got[~mask] == 0).all()


def test_a_small_spread_is_whitened_like_a_large_one():
    assert whiten(torch.tensor([0.49, 0.51])).tolist() == pytest.approx([-1, 1], rel=1e-3)


def test_what_does_not_count_is_0_also_where_nothing_counts():
    x, counts = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])
    assert whiten(x, counts)[2] == 0.0
    assert whiten(x, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("x", [[3.0], [2.0, 2.0, 2.0]])
def test_scores_without_spread_become_zero(x):
    assert whiten(torch.tensor(x)).tolist() == [0.0] * len(x)


def test_two_ranks_whiten_over_both_halves():
    # Each rank holds two of four values; `total` plays the all-reduce in lock step.
    whole = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sums = iter([torch.tensor(4.0), whole.sum(), ((whole - 2.5) ** 2).sum()])
    got = whiten(whole[:2], total=lambda partial: next(sums))
    torch.testing.assert_close(got, whiten(whole)[:2])
