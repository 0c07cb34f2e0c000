"""Duplicates: the first stays, near ones go at their exact similarity, nothing goes by chance."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from llama2_pl.data.cleaning import duplicates
from llama2_pl.data.cleaning.duplicates import (
    DuplicateRules,
    NearDuplicates,
    SameDocuments,
    SameLines,
    folded_line,
    jaccard,
    minhash,
    rows_of_band,
    shingles,
)


@pytest.fixture
def near() -> Iterator[NearDuplicates]:
    with tempfile.TemporaryFile() as file:
        yield NearDuplicates(file, threshold=0.8, words=5)


def words(count: int, prefix: str = "w") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def changed(count: int, last: int) -> str:
    """A text of ``count`` distinct words with other ones in the last places."""
    return " ".join([*words(count - last), *words(last, "other")])


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    """The literal definition, for texts of words and spaces."""
    parts = text.lower().split()
    return {tuple(parts[start : start + n]) for start in range(len(parts) - n + 1)}


def test_same_documents_differ_in_white_space_alone() -> None:
    same = SameDocuments()
    assert same("3 + 4\nis 7") == "3 + 4\nis 7"
    assert same(" 3 + 4 is  7\n") is None
    assert same("3 - 4 is 7") is not None
    assert same("3 + 4 Is 7") is not None


def test_the_normal_form_of_a_line_has_no_case_digits_or_punctuation() -> None:
    assert folded_line(" Page 12: «Été»! ") == folded_line("page 99 - été") == "page00été"


def test_a_line_goes_where_it_stood_before_in_this_document_or_another() -> None:
    same = SameLines()
    assert same("Share this!\nOne.\n---\nOne.") == "Share this!\nOne.\n---"
    assert same("share THIS\n---\n\nTwo.") == "---\n\nTwo."
    assert same("share this") == ""


def test_shingles_are_the_distinct_n_grams_of_words() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words(30), k=300)) for _ in range(6)]
    for left, right in pairwise(texts):
        mine, theirs = grams(left, 2), grams(right, 2)
        a, b = shingles(left, 2), shingles(right, 2)
        assert (len(a), len(b)) == (len(mine), len(theirs))
        assert jaccard(a, b) == len(mine & theirs) / len(mine | theirs)
    assert len(shingles("one two three four", 5)) == 0


def test_words_are_compared_without_case_and_punctuation_but_with_signs_and_chinese_characters() -> None:
    assert np.array_equal(shingles("One, two (three)!", 3), shingles("one two three", 3))
    assert not np.array_equal(shingles("3 + 4 is 7", 3), shingles("3 - 4 is 7", 3))
    assert len(shingles("漢字仮名交り文", 5)) == 3  # seven characters


def test_minhash_estimates_the_exact_jaccard_similarity_of_random_sets() -> None:
    rng, size = np.random.default_rng(0), 1024
    for _ in range(30):
        pool = rng.choice(2**32, size=400, replace=False).astype(np.uint32)
        shared, total = int(rng.integers(10, 200)), 300
        left = np.sort(np.concatenate([pool[:shared], pool[shared : (shared + total) // 2]]))
        right = np.sort(np.concatenate([pool[:shared], pool[(shared + total) // 2 : total]]))
        exact = len(set(left.tolist()) & set(right.tolist())) / len(set(left.tolist()) | set(right.tolist()))
        estimate = float((minhash(left, size) == minhash(right, size)).mean())
        assert jaccard(left, right) == exact == shared / total
        assert abs(estimate - exact) < 4 * (exact * (1 - exact) / size) ** 0.5


def test_a_band_has_the_most_rows_that_find_99_of_100_pairs_at_the_threshold() -> None:
    # 1 - (1 - s^r)^14 >= 0.99, so s^r >= 0.2803: 0.8^5 = 0.328 and 0.8^6 = 0.262, 0.9^12 = 0.282, 0.5^1
    assert [rows_of_band(threshold) for threshold in (0.8, 0.9, 0.5, 1.0)] == [5, 12, 1, 16]


def test_a_near_duplicate_of_95_percent_goes_and_one_of_60_stays(near: NearDuplicates) -> None:
    # 200 grams of 5 words each; the last k words cost k of them: 195 / 205 and 150 / 250
    for last, similarity in ((5, 195 / 205), (50, 150 / 250)):
        assert jaccard(shingles(changed(204, 0), 5), shingles(changed(204, last), 5)) == similarity
    assert near(changed(204, 0)) is not None
    assert near(changed(204, 5)) is None
    assert near(changed(204, 50)) == changed(204, 50)


def test_a_collision_of_every_band_takes_no_document_that_differs(
    near: NearDuplicates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "_keys", lambda grams: [0] * duplicates.BANDS)
    texts = [" ".join(words(100, prefix)) for prefix in "abcdef"]
    assert [near(text) for text in texts] == texts
    assert near(texts[-1]) is None


def test_of_many_pairs_those_above_the_threshold_are_found(near: NearDuplicates) -> None:
    """100 pairs at 0.85 and 100 at 0.75, the exact similarity of each by the literal definition."""
    found = {0.85: 0, 0.75: 0}
    for similarity, last in ((0.85, 16), (0.75, 29)):
        for number in range(100):
            text = [f"{similarity}-{number}-{place}" for place in range(204)]
            other = [*text[:-last], *(f"other {place}" for place in text[-last:])]
            one, two = " ".join(text), " ".join(other).replace("other ", "x")
            left, right = grams(one, 5), grams(two, 5)
            assert abs(len(left & right) / len(left | right) - similarity) < 0.01
            assert near(one) is not None
            found[similarity] += near(two) is None
    assert found[0.85] >= 97 and found[0.75] == 0


def test_a_text_shorter_than_an_n_gram_is_never_near_another(near: NearDuplicates) -> None:
    assert near("one two three") == near("one two three")


@pytest.mark.parametrize("options", [{"near": 0.0}, {"near": 1.2}, {"words": 0}])
def test_options_out_of_range_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match=r"duplicates\.(near|words) is"):
        DuplicateRules(**options)
