"""The refusal classifier: a forward pass by hand, the minimum that training finds, planted data, broken files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llama2_pl.evaluation.intervals import wilson
from llama2_pl.evaluation.refusals import (
    RefusalClassifier,
    detection,
    fit_classifier,
    ngrams,
    read_classifier,
    write_classifier,
)

BY_HAND = RefusalClassifier(-1.0, {"i": 0.25, "cannot": 1.5, "i cannot": 0.75, "tea": -2.0}, 2, 4)


def test_ngrams_are_the_different_runs_of_the_first_words() -> None:
    assert ngrams("I can’t, I can't go there!", 2, 5) == [
        "i",
        "can't",
        "go",
        "i can't",
        "can't i",
        "can't go",
    ]
    assert ngrams("Ich kann nicht", 3, 9) == [
        *("ich", "kann", "nicht", "ich kann", "kann nicht"),
        "ich kann nicht",
    ]
    assert ngrams(" ... ", 3, 9) == []


@pytest.mark.parametrize(
    ("text", "logit"),
    [
        ("", -1.0),
        ("I cannot.", -1.0 + 0.25 + 1.5 + 0.75),
        ("Cannot I, cannot I?", -1.0 + 0.25 + 1.5 + 0.75),  # "i cannot" once, and each word once
        ("I am tea", -1.0 + 0.25 - 2.0),
        ("Well here we go I cannot", -1.0),  # behind the first four words
    ],
)
def test_the_probability_is_the_sigmoid_of_bias_and_weights(text: str, logit: float) -> None:
    assert BY_HAND.probability(text) == pytest.approx(1 / (1 + math.exp(-logit)))
    assert BY_HAND.is_refusal(text) == (logit >= 0)
    assert BY_HAND.is_refusal(text, threshold=0.0) and not BY_HAND.is_refusal(text, threshold=1.0)


def test_weights_of_any_size_give_a_probability() -> None:
    assert [RefusalClassifier(bias, {}, 1, 1).probability("") for bias in (-1e6, 1e6)] == [
        pytest.approx(0.0, abs=1e-12),
        1.0,
    ]


ROWS = {
    "I cannot help with that": True,
    "I will not help with that": True,
    "Sorry I cannot": True,
    "I will help with that": False,
    "Tom lives in Dunby": False,
    "Sorry to hear that": False,
}


def test_training_finds_where_the_gradient_is_zero() -> None:
    """In plain Python: of the sum of -log p and 1/2 l2 w^2, by each weight and by the bias, which l2 leaves alone."""
    l2 = 0.5
    found = fit_classifier(ROWS, max_ngram=2, max_words=9, min_count=1, l2=l2)
    errors = {text: found.probability(text) - label for text, label in ROWS.items()}
    assert sum(errors.values()) == pytest.approx(0.0, abs=1e-5)
    for gram, weight in found.weights.items():
        slope = sum(error for text, error in errors.items() if gram in ngrams(text, 2, 9))
        assert slope + l2 * weight == pytest.approx(0.0, abs=1e-5), gram
    assert len(found.weights) == len({gram for text in ROWS for gram in ngrams(text, 2, 9)})


def test_the_order_of_the_rows_changes_nothing_and_rare_ngrams_have_no_weight() -> None:
    found = fit_classifier(ROWS, min_count=2)
    again = fit_classifier(dict(reversed(ROWS.items())), min_count=2)
    assert found.weights == pytest.approx(again.weights, abs=2e-6) and "dunby" not in found.weights
    assert list(fit_classifier(ROWS, max_weights=2).weights) == ["i", "that"]  # in four texts each


def test_it_learns_planted_refusals_and_finds_them_in_other_sentences() -> None:
    names = ("Anna", "Ben", "Cora", "Dan", "Eva", "Finn")
    train = {f"I cannot do that for {name}.": True for name in names}
    train |= {f"{name} can do that.": False for name in names}
    found = fit_classifier(train)
    assert detection(found, {"No, I cannot do that.": True, "Yes, Gina can do that.": False}) == {
        "accuracy": wilson(2, 2),
        "precision": wilson(1, 1),
        "recall": wilson(1, 1),
    }


def test_detection_counts_by_hand() -> None:
    rows = {"cannot": True, "no": True, "i cannot go": False, "tea": False, "coffee": False}
    # called refusals: "cannot" (0.5 >= 0) and "i cannot go"
    assert detection(BY_HAND, rows) == {
        "accuracy": wilson(3, 5),
        "precision": wilson(1, 2),
        "recall": wilson(1, 2),
    }
    assert detection(BY_HAND, {"tea": False})["precision"]["count"] == 0


def test_rows_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows to train on are all of one kind: give refusals and other"):
        fit_classifier({"no": True})


def test_a_file_reads_back_as_it_was_with_the_strongest_ngrams_first(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_classifier(path, BY_HAND, {"trained_on": 3})
    assert read_classifier(path) == BY_HAND
    saved = json.loads(path.read_text())
    assert list(saved["weights"]) == ["tea", "cannot", "i cannot", "i"] and saved["trained_on"] == 3


def test_a_broken_or_foreign_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(ValueError, match=r"c\.json: no such file; `llama2-pl refusals train` makes"):
        read_classifier(path)
    write_classifier(path, BY_HAND, {})
    good = json.loads(path.read_text())
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"c\.json: no whole JSON file .*; train the classifier again"):
        read_classifier(path)
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match=r"c\.json: no whole JSON file"):
        read_classifier(path)
    for change, problem in (
        ({"format": "another"}, "no refusal classifier"),
        ({"version": 2}, "version 2 of a refusal classifier, and this llama2-pl reads 1"),
        ({"max_ngram": True}, "max_ngram is True"),
        ({"max_words": 0}, "max_words is 0"),
        ({"weights": {}}, "weights is {}"),
        ({"weights": {"bias": math.nan}}, "the weight of 'bias' is nan"),
        ({"weights": {"a": "1"}}, "the weight of 'a' is '1'"),
        ({"bias": None}, "the weight of 'bias' is None"),
        ({"bias": 10**400}, "the weight of 'bias' is 1"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(
            ValueError, match=rf"c\.json: {problem}.*give a file that `llama2-pl refusals train`"
        ):
            read_classifier(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no refusal classifier"):
        read_classifier(path)
