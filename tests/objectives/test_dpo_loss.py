"""The loss of direct preference optimisation, by hand and by its gradient."""

import math

import pytest
import torch

from llama2_pl.objectives.dpo import answer_mask, dpo_loss, implicit_rewards

POLICY, REFERENCE = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.5])


def test_loss_by_hand():
    # chosen gained 0.5 nats, rejected lost 0.5: margin 0.5 * (0.5 + 0.5); -ln sigmoid(0.5) = ln(1 + e^-0.5)
    assert implicit_rewards(POLICY, REFERENCE, beta=0.5).tolist() == [0.25, -0.25]
    assert dpo_loss(POLICY, REFERENCE, beta=0.5).item() == pytest.approx(0.4740770, abs=1e-6)
    assert dpo_loss(REFERENCE, REFERENCE, beta=0.5).item() == pytest.approx(math.log(2))


def test_gradient_is_that_of_the_paper():
    """-beta sigmoid(r_rejected - r_chosen) for the chosen answer and its opposite for the rejected one (§4 there)."""
    policy = POLICY.clone().requires_grad_()
    dpo_loss(policy, REFERENCE, beta=0.5).backward()
    assert policy.grad is not None
    # 0.5 * sigmoid(-0.5) = 0.5 * 0.3775407
    assert policy.grad.tolist() == pytest.approx([-0.1887703, 0.1887703], abs=1e-6)


def test_tokens_count_from_where_the_rows_of_a_pair_part_to_their_ends():
    tokens = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 7, 8, 8, 2, 0], [1, 5, 6, 9, 2, 0], [1, 4, 8, 2, 0, 0]])
    mask = answer_mask(tokens, lengths=torch.tensor([4, 5, 5, 4]))
    assert mask.int().tolist() == [
        [0, 0, 0, 1, 0, 0],  # EOS against one token more
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 1, 1, 1, 0, 0],
    ]
