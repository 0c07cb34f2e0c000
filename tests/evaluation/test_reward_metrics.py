"""Reward model figures by hand, and scoring against one row at a time."""

from __future__ import annotations

import json
import math

import pytest
import torch

from llama2_pl.evaluation import reward, reward_metrics
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import ScalarModel

CHOSEN = torch.tensor([2.0, 0.0, 1.0, 5.0, 1.0])
REJECTED = torch.tensor([1.0, 1.0, 1.0, 4.0, 3.0])
RATING = torch.tensor([0, 0, 1, 1, 3])
LN3 = 1.0986124


@pytest.fixture(scope="module")
def model() -> ScalarModel:
    torch.manual_seed(0)
    network = ScalarModel(
        ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=50, multiple_of=16, max_seq_len=64)
    )
    with torch.no_grad():
        network.head.weight.normal_()
    return network.eval()


def test_accuracy_by_rating_by_hand_with_a_tie_counted_half():
    result = reward.accuracy_by_rating(CHOSEN, REJECTED, RATING)
    assert result["by_rating"] == {
        "significantly better": 0.5,
        "better": 0.75,
        "slightly better": None,
        "negligibly better": 0.0,
    }
    assert (result["overall"], result["pairs"], result["ties"]) == (0.5, 5, 1)
    assert list(result["pairs_by_rating"].values()) == [2, 2, 0, 1]


def test_accuracy_by_source_splits_the_pairs_and_leaves_out_empty_sources():
    source = torch.tensor([0, 0, 0, 2, 2])
    result = reward.accuracy_by_source(CHOSEN, REJECTED, RATING, source, ["web", "unused", "forum"])
    assert list(result) == ["web", "forum"]
    assert result["web"]["overall"] == 0.5 and result["forum"]["overall"] == 0.5
    assert result["web"]["pairs"] == 3
    with pytest.raises(ValueError, match="source 2 has no name"):
        reward.accuracy_by_source(CHOSEN, REJECTED, RATING, source, ["web"])


COLUMNS = (
    CHOSEN,
    REJECTED,
    RATING,
    torch.tensor([0, 0, 0, 2, 2]),
    torch.tensor([1.0, 1.0, 0.0, 0.0, float("nan")]),
    torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]),
)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (reward_metrics.AccuracyByRating(), reward.accuracy_by_rating(CHOSEN, REJECTED, RATING)),
        (
            reward_metrics.AccuracyBySource(["web"]),
            reward.accuracy_by_source(*COLUMNS[:4], ["web", "source_1", "source_2"]),
        ),
        # pair 0 right; pair 1 wrong; pair 2 a tie and pair 3 right; the label of pair 4 is not known
        (
            reward_metrics.AccuracyBySafety(),
            {"safe over unsafe": 1.0, "both safe": 0.0, "both unsafe": 0.75},
        ),
        (
            reward_metrics.UnsafeRecall(),
            reward.unsafe_detection(torch.cat([CHOSEN, REJECTED]), torch.cat(COLUMNS[4:])),
        ),
        (reward_metrics.Calibration(), reward.calibration_curve(CHOSEN, REJECTED)),
        (
            reward_metrics.ScoreHistogram(),
            reward.score_histogram(torch.cat([CHOSEN, REJECTED]), bins=20, scale="sigmoid"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_metric_over_several_batches_is_the_figure_of_all_pairs(metric, expected):
    for half in (slice(0, 2), slice(2, 5)):
        metric.update(*(column[half] for column in COLUMNS))
    assert metric.compute() == expected
    metric.reset()
    with pytest.raises(ValueError, match="no scored pair"), pytest.warns(UserWarning):
        metric.compute()


def test_calibration_of_a_model_that_says_what_is_true_lies_on_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    difference = 2 * torch.randn(40_000, generator=generator)
    truth = (
        torch.rand(40_000, generator=generator) < difference.sigmoid()
    )  # "first is better" with that probability
    chosen, rejected = torch.where(truth, difference, 0.0), torch.where(truth, 0.0, difference)
    curve = reward.calibration_curve(chosen, rejected)
    assert len(curve) == 10 and sum(row["count"] for row in curve) == 40_000
    for row in curve:
        assert row["observed"] == pytest.approx(row["predicted"], abs=0.03)
    assert reward.expected_calibration_error(curve) < 0.01
    overconfident = reward.calibration_curve(4 * chosen, 4 * rejected)
    assert reward.expected_calibration_error(overconfident) > 0.1


def test_calibration_bins_by_hand():
    curve = reward.calibration_curve(torch.tensor([0.0, 3.0, -3.0]), torch.zeros(3), bins=2)
    assert [row["count"] for row in curve] == [1, 2]
    assert curve[0]["predicted"] == 0.5 and curve[0]["observed"] == 0.5
    assert curve[1]["predicted"] == pytest.approx(1 / (1 + math.exp(-3))) and curve[1]["observed"] == 0.5


def test_unsafe_recall_and_precision_by_hand_leave_unknown_labels_out():
    scores = torch.tensor([-3.0, -1.0, 1.0, -2.0, 2.0, -9.0])  # sigmoid .05 .27 .73 .12 .88 .00
    is_safe = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, float("nan")])
    half = reward.unsafe_detection(scores, is_safe)
    assert half == {
        "threshold": 0.5,
        "recall": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "unsafe": 3,
        "flagged": 3,
        "count": 5,
    }
    strict = reward.unsafe_detection(scores, is_safe, threshold=0.15)
    assert strict["recall"] == pytest.approx(1 / 3) and strict["precision"] == 0.5
    assert reward.unsafe_detection(scores, torch.ones(6))["recall"] is None
    assert reward.unsafe_detection(torch.zeros(1), torch.zeros(1))["flagged"] == 0  # 0.5 is not below it


def test_the_gap_is_the_mean_difference_of_each_rating_by_hand():
    chosen, rejected = torch.tensor([3.0, 2.0, 0.5, 9.0]), torch.tensor([1.0, -2.0, 1.0, 0.0])
    gaps = reward.gap_by_rating(chosen, rejected, torch.tensor([0, 0, 3, reward.UNRATED]))
    # 2 and 4; -0.5; the unrated pair counts in none
    assert {name: (row["mean"], row["count"]) for name, row in gaps.items()} == {
        "significantly better": (3.0, 2),
        "negligibly better": (-0.5, 1),
    }


def test_histogram_holds_every_score_once():
    histogram = reward.score_histogram(torch.tensor([0.0, 0.1, 1.0, 4.0]), bins=4)
    assert histogram["edges"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert histogram["share"] == [0.5, 0.25, 0.0, 0.25]
    assert sum(reward.score_histogram(torch.ones(3))["share"]) == 1.0


def test_the_histogram_of_sigmoids_has_the_same_edges_for_every_model():
    # sigmoid(ln 3) = 0.75, sigmoid(0) = 0.5, sigmoid(-9) = 0.0001
    histogram = reward.score_histogram(torch.tensor([LN3, LN3, 0.0, -9.0]), bins=4, scale="sigmoid")
    assert histogram == {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "share": [0.25, 0.0, 0.25, 0.5]}


def test_results_go_into_json():
    json.dumps(
        [
            reward.accuracy_by_rating(CHOSEN, REJECTED, RATING),
            reward.calibration_curve(CHOSEN, REJECTED),
            reward.score_histogram(CHOSEN),
            reward.unsafe_detection(CHOSEN, torch.ones(5)),
            reward.gap_by_rating(CHOSEN, REJECTED, RATING),
        ]
    )


def test_the_score_is_averaged_at_seven_points_of_quality():
    scores = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    found = reward.score_by_quality(
        scores, torch.tensor([[0.0], [0.1], [0.5], [1.0]])
    )  # points 1, 1, 4 and 7
    assert {point: row["mean"] for point, row in found.items()} == {"1": 2.0, "4": 5.0, "7": 9.0}


def test_the_score_at_a_point_of_quality_is_one_observation_a_prompt():
    """Samples of a prompt are alike: resampled one by one, 16 of them make the interval up to four times too narrow."""
    scores = torch.tensor([[1.0, 3.0, 9.0], [6.0, 8.0, 10.0]])
    found = reward.score_by_quality(scores, torch.tensor([[0.0, 0.1, 1.0], [0.1, 0.5, 0.5]]))
    # point 1: 1 and 3 of the first prompt, 6 of the second; 4: 8 and 10 of the second; 7: 9 of the first
    assert {point: (row["mean"], row["count"]) for point, row in found.items()} == {
        "1": ((2.0 + 6.0) / 2, 2),
        "4": (9.0, 1),
        "7": (9.0, 1),
    }
    repeated = reward.score_by_quality(scores[:, :1].repeat(1, 16), torch.zeros(2, 16))
    assert repeated == reward.score_by_quality(scores[:, :1], torch.zeros(2, 1))
