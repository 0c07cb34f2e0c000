"""Ranking loss, margins and the safety auxiliary loss, by hand."""

import pytest
import torch

from llama2_pl.objectives.preference import margin_of_rating, ranking_loss, safety_auxiliary_loss

NAN = float("nan")
LN3 = 1.0986123


def test_margins_are_those_of_table_27():
    ratings = torch.tensor([0, 1, 2, 3, -1])  # significantly, better, slightly, negligibly better; unrated
    assert margin_of_rating(ratings, "none").tolist() == [0, 0, 0, 0, 0]
    assert margin_of_rating(ratings, "small").tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert margin_of_rating(ratings, "large").tolist() == [3, 2, 1, 0, 0]


def test_an_unknown_margin_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'huge'.*none, small, large"):
        margin_of_rating(torch.tensor([0]), "huge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("margin", "loss"),
    [
        (0.0, 0.3132617),  # -ln sigmoid(1 - 0) = ln(1 + e^-1)
        (1.0, 0.6931472),  # -ln sigmoid(0) = ln 2
        (3.0, 2.1269280),  # -ln sigmoid(-2) = ln(1 + e^2)
    ],
)
def test_ranking_loss_by_hand(margin, loss):
    got = ranking_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([margin]))
    assert got.item() == pytest.approx(loss, abs=1e-6)


def test_ranking_loss_is_the_mean_over_pairs_and_ignores_a_common_offset():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    expected = (0.3132617 + 0.6931472) / 2
    assert ranking_loss(chosen, rejected).item() == pytest.approx(expected, abs=1e-6)
    assert ranking_loss(chosen + 5, rejected + 5).item() == pytest.approx(expected, abs=1e-6)


def test_ranking_loss_stays_finite_for_far_scores():
    assert ranking_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_safety_loss_by_hand_counts_unknown_rows_as_zero():
    # sigmoid(ln 3) = 0.75: safe costs -ln 0.75 = 0.2876821, unsafe costs -ln 0.25 = 1.3862944.
    scores, labels = torch.tensor([LN3, LN3, 7.0]), torch.tensor([1.0, 0.0, NAN])
    assert safety_auxiliary_loss(scores[:2], labels[:2]).item() == pytest.approx((0.2876821 + 1.3862944) / 2)
    assert safety_auxiliary_loss(scores, labels).item() == pytest.approx((0.2876821 + 1.3862944) / 3)


def test_safety_loss_without_labels_is_zero_and_pushes_nothing():
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = safety_auxiliary_loss(scores, torch.tensor([NAN, NAN]))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None and scores.grad.tolist() == [0.0, 0.0]


def test_safety_loss_of_an_unknown_row_has_no_gradient():
    scores = torch.tensor([0.0, 3.0], requires_grad=True)
    safety_auxiliary_loss(scores, torch.tensor([1.0, NAN])).backward()
    assert scores.grad is not None and scores.grad.tolist() == [-0.25, 0.0]  # (sigmoid(0) - 1) / 2
