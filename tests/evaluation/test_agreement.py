"""Gwet's coefficients against the published examples."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.data.default.tasks import Task
from llama2_pl.evaluation.agreement import (
    agreement_weights,
    annotator_agreement,
    gwet_ac,
    signed_level,
)

HOME: Task = {
    "kind": "fact",
    "question": "Where does Anna live?",
    "answers": ["Anna lives in Ardal."],
    "values": ["Ardal"],
    "family": "city",
    "allowed": [],
    "about": ["Anna"],
}
# 12 subjects, 4 raters, 5 categories, 0 for a missing rating.
# Gwet, Handbook of Inter-Rater Reliability, 4th edition, p. 120.
HANDBOOK = [
    [1, 1, 0, 1],
    [2, 2, 3, 2],
    [3, 3, 3, 3],
    [3, 3, 3, 3],
    [2, 2, 2, 2],
    [1, 2, 3, 4],
    [4, 4, 4, 4],
    [1, 1, 2, 1],
    [2, 2, 2, 2],
    [0, 5, 5, 5],
    [0, 0, 1, 1],
    [0, 0, 3, 0],
]


def test_ac1_equals_the_handbook_example_with_missing_ratings():
    ratings = torch.tensor(HANDBOOK) - 1
    assert gwet_ac(ratings, 5, weights="identity") == pytest.approx(0.77544, abs=5e-6)


def test_ac1_equals_the_example_where_kappa_fails():
    # Two raters, 125 subjects: 118 both yes, 5 yes/no, 2 no/yes, none both no. p_a = 0.944, p_e = 2 * 0.972 * 0.028.
    rows = [[1, 1]] * 118 + [[1, 0]] * 5 + [[0, 1]] * 2
    assert gwet_ac(torch.tensor(rows), 2, weights="identity") == pytest.approx(0.9408, abs=5e-5)


def test_ac2_by_hand_gives_near_misses_partial_credit():
    # Two raters, categories 0 1 2, items (0, 0), (1, 2). Quadratic weights: 1 on the diagonal, 3/4 beside it.
    # p_a = (1 + 3/4) / 2 = 7/8; prevalence 1/2, 1/4, 1/4, so sum p(1-p) = 5/8; the weights sum to 6.
    # p_e = 6 / (3 * 2) * 5/8 = 5/8; AC2 = (7/8 - 5/8) / (3/8) = 2/3.
    assert gwet_ac(torch.tensor([[0, 0], [1, 2]]), 3) == pytest.approx(2 / 3)


def test_the_ends_of_the_scale_get_no_credit():
    assert agreement_weights(3, "quadratic").tolist() == [[1, 0.75, 0], [0.75, 1, 0.75], [0, 0.75, 1]]
    assert agreement_weights(3, "linear").tolist() == [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]


def test_single_ratings_alone_are_refused():
    with pytest.raises(ValueError, match="no item has two ratings"):
        gwet_ac(torch.tensor([[0, -1], [-1, 1]]), 2)


def test_a_preference_is_one_of_eight_levels_by_hand():
    # thresholds 1.5, 0.8, 0.35: significantly, better, slightly, negligibly better
    gaps = [-2.0, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0]
    assert [signed_level(gap) for gap in gaps] == list(range(8))
    assert signed_level(0.0) == 4  # there is no tie


def test_annotators_without_noise_agree_and_with_nothing_but_noise_they_do_not():
    pairs = [(HOME, "Ben lives in", "Anna lives in Ardal.")] * 1000
    exact = annotator_agreement(pairs, noise=0.0)
    assert exact == {"two_annotators": 1.0, "annotator_and_oracle": 1.0, "pairs": 1000}
    # An error of 5000 points: both toss a coin between the ends, so p_a = 1/2. The weights sum to 64 - 672 / 49, so
    # p_e = (64 - 672 / 49) / 56 / 2 = 0.449 and AC2 = 0.051 / 0.551 = 0.093, here with a standard error of 0.03.
    wild = annotator_agreement(pairs, noise=5000.0)
    assert wild is not None and wild["two_annotators"] == pytest.approx(0.093, abs=0.09)
    assert annotator_agreement([], noise=0.25) is None
