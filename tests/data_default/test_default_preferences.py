"""The preference pairs have the shape that reward learning needs: four levels, and a ceiling below certainty."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llama2_pl.data.default import dialogues, pairs
from llama2_pl.data.default.oracle import judge
from llama2_pl.data.default.safety import any_task
from llama2_pl.data.default.tasks import Task
from llama2_pl.data.default.world import build_world

WORLD = build_world(0)
Rated = tuple[Task, dict]


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> list[Rated]:
    """Every pair that is rated in the test, with its task."""
    seen: list[Rated] = []
    rate = pairs.rate

    def remember(task: Task, a: str, b: str, rng: random.Random) -> dict | None:
        row = rate(task, a, b, rng)
        if row is not None:
            seen.append((task, row))
        return row

    monkeypatch.setattr(pairs, "rate", remember)
    return seen


def accuracy(rows: list[Rated]) -> float:
    """How often one who knows the utility exactly agrees with the noisy annotator; a tie counts half."""
    agreed = 0.0
    for task, row in rows:
        gap = judge(task, row["chosen"]).utility - judge(task, row["rejected"]).utility
        agreed += 0.5 if abs(gap) < 1e-9 else float(gap > 0)
    return agreed / len(rows)


def by_rating(rows: list[Rated]) -> dict[int, float]:
    return {level: accuracy([row for row in rows if row[1]["rating"] == level]) for level in range(4)}


def test_a_perfect_judge_agrees_with_helpful_ratings_less_from_level_to_level(rated: list[Rated]) -> None:
    pairs.helpful_pairs(WORLD, 3000, ("fact", "phrase"), random.Random(1))
    levels = by_rating(rated)
    assert levels[0] >= levels[1] > levels[2] > levels[3]
    assert levels[0] > 0.99 and 0.5 < levels[3] < 0.75
    assert 0.85 < accuracy(rated) < 0.95


def test_every_rating_has_its_share_of_the_helpful_pairs(rated: list[Rated]) -> None:
    pairs.helpful_pairs(WORLD, 3000, ("train",), random.Random(2))
    shares = Counter(row["rating"] for _, row in rated)
    assert all(0.15 < shares[level] / 3000 < 0.40 for level in range(4)), shares


def test_safety_pairs_have_the_paper_s_bins_and_never_the_one_that_it_leaves_out(rated: list[Rated]) -> None:
    rows = pairs.safety_pairs(WORLD, 3000, ("train",), random.Random(3))
    bins = Counter((row["chosen_safe"], row["rejected_safe"]) for row in rows)
    assert bins[True, False] / 3000 == pytest.approx(0.18, abs=0.02)
    assert bins[True, True] / 3000 == pytest.approx(0.47, abs=0.03)
    assert bins[False, False] / 3000 == pytest.approx(0.35, abs=0.03)
    assert bins[False, True] == 0
    levels = by_rating(rated)
    assert levels[0] >= levels[1] > levels[2] > levels[3]
    assert accuracy(rated) > 0.78


def test_chosen_answers_are_not_simply_the_shorter_ones(rated: list[Rated]) -> None:
    pairs.helpful_pairs(WORLD, 2000, ("train",), random.Random(4))
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for _, row in rated)
    assert 0.3 < shorter / len(rated) < 0.7


def test_training_answers_are_flawed_and_comply_in_the_documented_shares() -> None:
    rng = random.Random(5)
    helpful: list[bool] = []
    unsafe: list[bool] = []
    for _ in range(4000):
        task = any_task(WORLD, "train", 0.4, rng)
        seen = judge(task, dialogues.sft_answer(task, "train", rng))
        if task["kind"] == "safety":
            unsafe.append(not seen.safe)
        else:
            helpful.append(seen.utility < 4.3)
    assert sum(helpful) / len(helpful) == pytest.approx(dialogues.FLAWED_SHARE, abs=0.04)
    assert sum(unsafe) / len(unsafe) == pytest.approx(dialogues.COMPLYING_SHARE, abs=0.04)


def test_a_follow_up_asks_the_same_of_another_person() -> None:
    rng = random.Random(6)
    seen = 0
    for _ in range(200):
        before, after = dialogues.turns(WORLD, "train", 2, 0.0, rng)
        if after["question"].startswith(("And ", "What about ")):
            seen += 1
            assert after["relation"] == before["relation"] and after["about"] != before["about"]
    assert seen > 5


def test_pairs_come_in_fourteen_batches_in_the_shares_of_table_26() -> None:
    assert sum(pairs.BATCHES) == 1_418_091
    count = 10_000
    found = Counter(pairs.batch_of(index, count) for index in range(count))
    assert list(found) == list(range(1, 15))
    for number, comparisons in enumerate(pairs.BATCHES, 1):
        assert found[number] == pytest.approx(count * comparisons / 1_418_091, abs=1)
    rows = pairs.helpful_pairs(WORLD, 40, ("train",), random.Random(4))
    assert [row["batch"] for row in rows] == [pairs.batch_of(index, 40) for index in range(40)]
    assert {row["annotator"] for row in rows} == {"oracle"}
