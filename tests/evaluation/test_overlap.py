"""Matches of ten tokens and more: worked by hand, and against a literal search of every pair of places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llama2_pl.evaluation import overlap
from llama2_pl.evaluation.overlap import OverlapIndex, window_hashes


def scanned(samples: Sequence[Sequence[int]], documents: Sequence[Sequence[int]], **how) -> OverlapIndex:
    index = OverlapIndex(samples, **how)
    ids = np.array([token for document in documents for token in document], dtype=np.uint16)
    index.scan(ids, np.cumsum([0, *map(len, documents)]))
    return index


def found(sample: Sequence[int], *documents: Sequence[int], at_least: int = 10, **how) -> int:
    """Contaminated tokens of one sample."""
    return int(scanned([sample], documents, **how).contaminated(at_least)[0])


def differing(sample: Sequence[int], *places: int) -> list[int]:
    """The sample with other tokens at these places, and some around it."""
    return [900, 901, *(800 + n if n in places else token for n, token in enumerate(sample)), 902]


SAMPLE = list(range(100, 128))  # 28 tokens, all different


def test_a_match_with_four_mismatches_is_found_and_one_with_five_is_not() -> None:
    assert found(SAMPLE, differing(SAMPLE, 11, 13, 15, 17)) == 28
    # The fifth, at 19, ends the match behind 18; 20 to 27 are eight tokens.
    assert found(SAMPLE, differing(SAMPLE, 11, 13, 15, 17, 19)) == 19
    assert found(SAMPLE, differing(SAMPLE, 11, 13, 15, 17, 19), at_least=20) == 0
    assert found(SAMPLE, differing(SAMPLE, 11, 13, 15, 17, 19), at_least=20, budget=5) == 28


def test_budget_0_is_the_longest_equal_stretch() -> None:
    assert found(SAMPLE, differing(SAMPLE, 12), budget=0) == 12 + 15
    assert found(SAMPLE, differing(SAMPLE, 12), budget=0, at_least=13) == 15


def test_no_mismatch_is_in_the_first_ten() -> None:
    assert found(SAMPLE[:20], differing(SAMPLE[:20], 5)) == 14  # from 6 on
    assert found(SAMPLE[:20], differing(SAMPLE[:20], 9)) == 10  # from 10 on
    assert found(SAMPLE[:19], differing(SAMPLE[:19], 9)) == 0  # nine on either side


def test_no_mismatch_is_at_the_end() -> None:
    assert found(SAMPLE, differing(SAMPLE, 27)) == 27
    assert found(SAMPLE, differing(SAMPLE, 25, 26, 27)) == 25
    assert found(SAMPLE, differing(SAMPLE, 24, 26)) == 28


def test_a_token_left_out_ends_a_match() -> None:
    document = SAMPLE[:12] + SAMPLE[13:]  # what follows stands one place to the left, in a match of its own
    assert found(SAMPLE, document) == 27
    assert found(SAMPLE, document, at_least=13) == 15
    assert found(SAMPLE, document, at_least=16) == 0


def test_ten_tokens_are_a_match_and_nine_are_none() -> None:
    assert found(SAMPLE, [1, *SAMPLE[4:14], 2]) == 10
    assert found(SAMPLE, [1, *SAMPLE[4:14], 2], at_least=11) == 0
    assert found(SAMPLE, [1, *SAMPLE[4:13], 2]) == 0
    assert found(SAMPLE[:9], SAMPLE) == 0
    assert found(SAMPLE, SAMPLE[:9]) == 0


def test_matches_with_several_documents_are_joined_in_the_sample() -> None:
    assert found(SAMPLE, [*SAMPLE[:15], 1], [2, *SAMPLE[10:22]]) == 22
    assert found(SAMPLE, [*SAMPLE[:15], 1], [2, *SAMPLE[10:22]], at_least=13) == 15


def test_neither_documents_nor_samples_are_joined() -> None:
    assert found(SAMPLE[:12], SAMPLE[:6], SAMPLE[6:12]) == 0
    assert found(SAMPLE, SAMPLE[:15], SAMPLE[15:]) == 28
    assert found(SAMPLE, SAMPLE[:15], SAMPLE[15:], at_least=16) == 0
    assert scanned([SAMPLE[:6], SAMPLE[6:12]], [SAMPLE]).contaminated(10).tolist() == [0, 0]
    assert scanned([SAMPLE[:11], SAMPLE[11:]], [SAMPLE]).contaminated(18).tolist() == [0, 0]


def test_the_token_before_a_document_or_a_sample_is_not_that_of_its_neighbour() -> None:
    # 7 stands before both copies, in another document and in another sample: still they begin a match.
    assert scanned([[1, 7], SAMPLE], [[2, 7], SAMPLE]).contaminated(28).tolist() == [0, 28]
    assert scanned([[1, 7], SAMPLE], [[2, 7, *SAMPLE]]).contaminated(28).tolist() == [0, 28]
    assert scanned([[1, 7, *SAMPLE]], [[2, 7], SAMPLE]).contaminated(28).tolist() == [28]


def test_tokens_of_equal_hash_are_no_match() -> None:
    # The hash is a polynomial in 0x9E3779B1: one less in the last place but one is that much more in the last.
    document, other = [*SAMPLE[:8], 7, 0, *SAMPLE[8:]], [*SAMPLE[:8], 6, 0x9E3779B1, *SAMPLE[8:12], 1]
    assert window_hashes(np.array(document))[0] == window_hashes(np.array(other))[0]
    index = OverlapIndex([document, other])
    index.scan(np.array(document, dtype=np.uint32), np.array([0, 30]))
    assert index.contaminated(10).tolist() == [30, 0]


def test_samples_and_documents_without_tokens_are_taken() -> None:
    index = scanned([[], SAMPLE, [], [1]], [[], SAMPLE, []])
    assert index.contaminated(10).tolist() == [0, 28, 0, 0]
    assert scanned([], [SAMPLE]).contaminated(10).tolist() == []
    assert scanned([SAMPLE], []).contaminated(10).tolist() == [0]


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="budget is -1"):
        OverlapIndex([SAMPLE], budget=-1)
    with pytest.raises(ValueError, match="min_length is 9"):
        OverlapIndex([SAMPLE]).contaminated(9)


def literally(sample: list[int], documents: list[list[int]], at_least: int, budget: int) -> int:
    """Every start in the sample against every start in each document, token by token, all spans marked."""
    inside = [False] * len(sample)
    for document in documents:
        for i in range(len(sample)):
            for j in range(len(document)):
                wrong = 0
                for m in range(min(len(sample) - i, len(document) - j)):
                    same = sample[i + m] == document[j + m]
                    wrong += not same
                    if wrong > budget or (not same and m < 10):
                        break
                    if same and m + 1 >= at_least:
                        inside[i : i + m + 1] = [True] * (m + 1)
    return sum(inside)


def small_world(chance: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """Samples and documents of one to three words, with parts of samples copied into documents with mistakes."""
    words = chance.choice([1, 2, 2, 3])
    samples = [[chance.randrange(words) for _ in range(chance.randrange(60))] for _ in range(3)]
    documents = [[chance.randrange(words) for _ in range(chance.randrange(60))] for _ in range(3)]
    for document in documents:
        if sample := chance.choice(samples):
            copy = sample[chance.randrange(len(sample)) :]
            for _ in range(chance.randrange(7)):
                copy[chance.randrange(len(copy))] = chance.randrange(words + 1)
            place = chance.randrange(len(document) + 1)
            document[place:place] = copy
    return samples, documents


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
@pytest.mark.parametrize("seed", range(4))
def test_the_counts_are_those_of_a_literal_search_wherever_chunks_end(
    seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{seed} {chunk}")
    monkeypatch.setattr(overlap, "_PAIRS", chance.choice([1, 5, 1000]))
    for _ in range(4):
        samples, documents = small_world(chance)
        budget = chance.randrange(6)
        index = scanned(samples, documents, budget=budget, chunk=chunk)
        for at_least in (10, 13, 20, 30):
            wanted = [literally(sample, documents, at_least, budget) for sample in samples]
            assert index.contaminated(at_least).tolist() == wanted


def test_documents_may_come_in_several_calls_from_a_mapped_file(tmp_path: Path) -> None:
    chance = random.Random(0)
    samples, documents = small_world(chance)
    index = OverlapIndex(samples)
    for number, document in enumerate(documents):
        np.array(document, dtype=np.uint16).tofile(tmp_path / f"{number}.bin")
        index.scan(
            np.memmap(tmp_path / f"{number}.bin", dtype=np.uint16, mode="r"), np.array([0, len(document)])
        )
    assert index.contaminated(10).sum() == sum(literally(s, documents, 10, 4) for s in samples) > 0


def test_long_matches_are_followed_to_their_end() -> None:
    chance = random.Random(1)
    sample = [chance.randrange(5) for _ in range(500)]
    document = [9, *sample, 9]
    for place in (100, 200, 300, 400):
        document[1 + place] = 9
    assert found(sample, document, at_least=500) == 500
    document[450] = 9
    # The first match ends before the fifth mismatch, at 449; one that begins behind the first, at 101, has four.
    assert found(sample, document, at_least=399) == 500
    assert found(sample, document, at_least=400) == 449
