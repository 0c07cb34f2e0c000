"""Rewards, advantages and clipped losses of PPO, by hand and against a literal loop."""

import math

import pytest
import torch

from llama2_pl.objectives import ppo
from llama2_pl.objectives.language import predicting


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def mask(text: str) -> torch.Tensor:
    """'..rrr.' -> True where r."""
    return torch.tensor([[c == "r" for c in line] for line in text.split()])


def random_rows(seed: int = 0):
    torch.manual_seed(seed)
    response = mask("..rrr.. .rrrrrr ...r... .......")  # the last row has no response at all
    return torch.randn(4, 7), torch.randn(4, 7), response


def test_values_move_to_the_token_they_precede():
    counted = torch.tensor([[False, True, True], [False, False, True]])
    every = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = [[0, 1, 2], [0, 0, 5]]
    assert ppo.values_before_tokens(every, counted).tolist() == expected
    at = predicting(counted)
    assert at is not None and at.tolist() == [0, 1, 4]
    assert ppo.values_before_tokens(every.flatten()[at], counted).tolist() == expected


def test_kl_estimates_by_hand():
    # p = 0.5, p_0 = 0.25: k1 = ln 2; k3 = 0.5 - 1 - ln 0.5 = 0.193147
    p, reference = row(math.log(0.5)), row(math.log(0.25))
    assert ppo.kl_estimate(p, reference).item() == pytest.approx(math.log(2))
    assert ppo.kl_estimate(p, reference, "k3").item() == pytest.approx(0.1931472, abs=1e-6)
    assert ppo.kl_estimate(p, p, "k3").item() == 0.0


def test_both_estimators_average_to_the_exact_kl():
    # KL((0.5, 0.5) || (0.25, 0.75)) = 0.5 ln 2 + 0.5 ln (2/3) = 0.143841, summing over both outcomes.
    p, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    for estimator in ("k1", "k3"):
        exact = (p.exp() * ppo.kl_estimate(p, reference, estimator)).sum()  # type: ignore[arg-type]
        assert exact.item() == pytest.approx(0.1438410, abs=1e-6)


def test_reward_is_the_score_at_the_end_minus_beta_kl_on_each_token():
    # response at 1..3, score 2 at 3, beta 0.1: 0 - 0.1*1, 0 - 0.1*2, 2 - 0.1*3; padding and prompt 0.
    got = ppo.shape_rewards(torch.tensor([2.0]), row(9, 1, 2, 3, 9), mask(".rrr."), beta=0.1)
    torch.testing.assert_close(got, row(0, -0.1, -0.2, 1.7, 0))


def test_score_reaches_a_response_that_fills_its_row_and_skips_an_empty_one():
    got = ppo.shape_rewards(torch.tensor([2.0, 5.0]), torch.zeros(2, 3), mask(".rr ..."), beta=0.1)
    assert got.tolist() == [[0, 0, 2], [0, 0, 0]]


def test_beta_scales_the_penalty():
    arguments = torch.tensor([2.0]), row(0, 1, 1), mask(".rr")
    assert ppo.shape_rewards(*arguments, beta=0.0).sum().item() == 2.0
    assert ppo.shape_rewards(*arguments, beta=0.5).sum().item() == 1.0


def test_gae_by_hand():
    # deltas 0, 0, 0.5; lambda 0.5: advantages 0.125, 0.25, 0.5; returns = advantages + 0.5
    rewards, values = row(0, 0, 0, 1, 0), row(9, 0.5, 0.5, 0.5, 9)
    advantages, returns = ppo.gae(rewards, values, mask(".rrr."), gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantages, row(0, 0.125, 0.25, 0.5, 0))
    torch.testing.assert_close(returns, row(0, 0.625, 0.75, 1.0, 0))


def gae_by_the_book(rewards, values, positions, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}, written out for one row."""
    deltas = {
        t: rewards[t] + gamma * (values[t + 1] if t + 1 in positions else 0.0) - values[t] for t in positions
    }
    return {t: sum((gamma * lam) ** (u - t) * deltas[u] for u in positions if u >= t) for t in positions}


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_literal_loop(gamma, lam):
    rewards, values, response = random_rows()
    advantages, returns = ppo.gae(rewards, values, response, gamma, lam)
    for b in range(4):
        positions = response[b].nonzero().flatten().tolist()
        want = gae_by_the_book(rewards[b].tolist(), values[b].tolist(), positions, gamma, lam)
        for t in range(7):
            assert advantages[b, t].item() == pytest.approx(want.get(t, 0.0), abs=1e-5)
            expected_return = want[t] + values[b, t].item() if t in want else 0.0
            assert returns[b, t].item() == pytest.approx(expected_return, abs=1e-5)


def test_lambda_1_gives_the_plain_return_and_lambda_0_the_one_step_error():
    rewards, values, response = random_rows()
    _, returns = ppo.gae(rewards, values, response, gamma=1.0, lam=1.0)
    assert returns[1, 1].item() == pytest.approx(rewards[1, 1:7].sum().item(), abs=1e-5)
    advantages, _ = ppo.gae(rewards, values, response, gamma=1.0, lam=0.0)
    want = rewards[1, 1] + values[1, 2] - values[1, 1]
    assert advantages[1, 1].item() == pytest.approx(want.item(), abs=1e-5)


def test_policy_loss_by_hand():
    # ratio, advantage -> min(r A, clip(r) A): 1.5, 1 -> 1.2; 0.5, 1 -> 0.5; 0.5, -1 -> -0.8; 1.5, -1 -> -1.5
    new = row(math.log(1.5), math.log(0.5), math.log(0.5), math.log(1.5), 7.0)
    loss, stats = ppo.ppo_policy_loss(new, torch.zeros(1, 5), row(1, 1, -1, -1, 50), mask("rrrr."))
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 0.8 - 1.5) / 4)
    assert stats.ratio_mean.item() == pytest.approx(1.0)
    assert stats.ratio_max.item() == pytest.approx(1.5)
    assert stats.clip_fraction.item() == 1.0
    # r - 1 - ln r: 0.0945349 where the ratio is 1.5, 0.1931472 where it is 0.5
    assert stats.approx_kl.item() == pytest.approx((0.0945349 + 0.1931472) / 2, abs=1e-6)


def test_a_minibatch_without_a_counted_token_has_no_loss_and_ratio_1():
    new = row(0.5, 0.5).requires_grad_()
    loss, stats = ppo.ppo_policy_loss(new, torch.zeros(1, 2), row(1, 1), mask(".."))
    assert (loss.item(), stats.ratio_mean.item(), stats.ratio_max.item()) == (0.0, 1.0, 1.0)
    below = ppo.ppo_policy_loss(row(math.log(0.5), 3.0), torch.zeros(1, 2), row(1, 1), mask("r."))[1]
    assert below.ratio_max.item() == pytest.approx(0.5)  # padding has no ratio


def test_a_token_left_out_spoils_nothing_however_far_its_ratio():
    new = row(0.0, 0.0).requires_grad_()  # as "drop" leaves them: nothing read, e^200 overflows
    loss, _ = ppo.ppo_policy_loss(new, row(0.0, -200.0), row(1.0, 0.0), mask("r."))
    loss.backward()
    assert loss.item() == -1.0
    assert new.grad is not None and new.grad.tolist() == [[-1.0, 0.0]]


def test_clip_bounds_the_gain_and_stops_the_gradient():
    new = row(math.log(1.5)).requires_grad_()
    old, advantage, one = torch.zeros(1, 1), row(1.0), mask("r")
    assert ppo.ppo_policy_loss(new, old, advantage, one, clip=0.2)[0].item() == pytest.approx(-1.2)
    assert ppo.ppo_policy_loss(new, old, advantage, one, clip=0.6)[0].item() == pytest.approx(-1.5)
    (stopped,) = torch.autograd.grad(ppo.ppo_policy_loss(new, old, advantage, one, clip=0.2)[0], new)
    assert stopped.item() == 0.0


def test_at_ratio_1_and_beta_0_the_gradient_is_reinforce():
    torch.manual_seed(1)
    logprobs = torch.randn(2, 6).requires_grad_()
    response, scores = mask("..rrr. .rrrrr"), torch.tensor([2.0, -1.0])
    zeros = torch.zeros(2, 6)
    rewards = ppo.shape_rewards(scores, torch.randn(2, 6), response, beta=0.0)
    advantages, _ = ppo.gae(rewards, zeros, response, gamma=1.0, lam=1.0)
    loss, stats = ppo.ppo_policy_loss(logprobs, logprobs.detach(), advantages, response)
    reinforce = -(scores[:, None] * logprobs * response).sum() / 8  # 8 response tokens
    (got,) = torch.autograd.grad(loss, logprobs)
    (want,) = torch.autograd.grad(reinforce, logprobs)
    torch.testing.assert_close(got, want)
    assert (stats.ratio_max.item(), stats.clip_fraction.item(), stats.approx_kl.item()) == (1.0, 0.0, 0.0)


def test_value_loss_by_hand():
    # error (2-3)^2 = 1; clipped prediction 1 + 0.2 gives (1.2-3)^2 = 3.24, the worse one; half of it 1.62
    arguments = row(2.0, 0.0), row(1.0, 0.0), row(3.0, 9.0), mask("r.")
    assert ppo.ppo_value_loss(*arguments, clip=0.2).item() == pytest.approx(1.62)
    assert ppo.ppo_value_loss(*arguments, clip=None).item() == pytest.approx(0.5)


def test_masked_mean_of_nothing_is_zero():
    assert ppo.masked_mean(row(1, 2, 6), mask("r.r")).item() == 3.5
    assert ppo.masked_mean(row(1, 2, 6), mask("...")).item() == 0.0


def test_explained_variance_by_hand():
    # returns 0, 2: variance 1. errors of values (0, 1): 0, 1 -> variance 0.25; 1 - 0.25
    returns, counts = row(0, 2, 50), mask("rr.")
    assert ppo.explained_variance(returns, returns, counts).item() == pytest.approx(1.0)
    assert ppo.explained_variance(row(0, 1, 0), returns, counts).item() == pytest.approx(0.75)
    assert ppo.explained_variance(row(1, 1, 0), returns, counts).item() == pytest.approx(0.0)
