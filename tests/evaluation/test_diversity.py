"""Diversity of answers on hand-made sets."""

from __future__ import annotations

import math

import pytest

from llama2_pl.evaluation.diversity import bleu, distinct_n, diversity_by_temperature, self_bleu


def test_bleu_by_hand_clips_repeated_words():
    # "the the the cat" against "the cat sat": 1-grams clipped to 2 of 4, 2-grams ("the cat") 1 of 3; longer, no penalty
    value = bleu(["the", "the", "the", "cat"], [["the", "cat", "sat"]], max_n=2)
    assert value == pytest.approx(math.sqrt(2 / 4 * 1 / 3))


def test_bleu_by_hand_with_penalty_for_a_short_text():
    # every n-gram of "a b" is in the reference of 4 words: precision 1, penalty exp(1 - 4 / 2)
    assert bleu(["a", "b"], [["a", "b", "c", "d"]], max_n=2) == pytest.approx(math.exp(-1))
    # references of 2 and 4 words are as near to 3: the shorter one counts, no penalty
    assert bleu(["a", "b", "c"], [["a", "b", "c", "d"], ["a", "b"]], max_n=1) == 1.0


def test_equal_answers_have_self_bleu_one_and_unlike_ones_almost_none():
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d", "e f g h", "i j k l"]) < 0.06
    assert self_bleu(["a b c d", "a b c e"]) > self_bleu(["a b c d", "a x y z"])


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # a b, b a, a b | a b: two kinds of four
    assert distinct_n(["a"], 2) == 0.0


def test_one_answer_cannot_be_compared():
    with pytest.raises(ValueError, match="1 given"):
        self_bleu(["a b"])


def test_diversity_is_measured_within_each_prompt_and_averaged_over_prompts():
    alike, unlike = ["a b c d", "a b c d"], ["e f", "g h"]
    found = diversity_by_temperature({0.5: [*alike, *alike], 1.0: [*alike, *unlike]}, 2)
    assert list(found) == ["0.5", "1"]
    assert found["0.5"]["self_bleu"]["mean"] == pytest.approx(1.0)
    assert found["0.5"]["distinct_2"]["mean"] == pytest.approx(3 / 6)
    # no match: 0.1 of 2 words and 0.1 of 1 pair, geometric mean; all word pairs of the second prompt differ
    assert found["1"]["self_bleu"]["mean"] == pytest.approx((1 + math.sqrt(0.05 * 0.1)) / 2)
    assert found["1"]["distinct_2"]["mean"] == pytest.approx((3 / 6 + 1) / 2)
    assert found["1"]["self_bleu"]["count"] == 2
