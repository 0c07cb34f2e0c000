"""What enters the pool and what is taken from it, by examples worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama2_pl.rlhf import pool
from llama2_pl.rlhf.pool import Entry, best_entries, choose_entries, lineage, training_dialogue


def sample(text: str, score: float, finished: bool = True) -> dict:
    return {"text": text, "score": score, "finished": finished, "temperature": 1.2}


def row(question: str, *samples: dict) -> dict:
    return {"messages": [{"role": "user", "content": question}], "is_safety": False, "samples": list(samples)}


def entry(question: str, answer: str, version: int, **scores: float) -> Entry:
    """`v2=0.5`: scored 0.5 by the reward models of version 2."""
    judged = {
        name[1:]: {"score": score, "helpfulness": score, "safety": 9.0} for name, score in scores.items()
    }
    asked = [{"role": "user", "content": question}]
    return Entry(asked, False, answer, version, f"sha{version}", 1.0, judged)


# q and r were answered in both versions, s in version 1 alone; the answer to t was found twice.
POOL = [
    entry("q", "old", 1, v1=0.1, v2=0.9),
    entry("r", "old", 1, v1=0.8, v2=0.2),
    entry("s", "alone", 1, v1=0.5, v2=-3.0),
    entry("t", "same", 1, v1=0.3, v2=0.6),
    entry("q", "new", 2, v2=0.4),
    entry("r", "new", 2, v2=0.7),
    entry("t", "same", 2, v2=0.6),
]


def taken(take, per_prompt: int = 1) -> list[tuple[str, str, int]]:
    chosen = choose_entries(POOL, 2, take, per_prompt)
    return sorted((e.messages[0]["content"], e.answer, e.version) for e in chosen)


def test_previous_takes_this_iteration_s_samples_alone() -> None:
    assert taken("previous") == [("q", "new", 2), ("r", "new", 2), ("t", "same", 2)]


def test_all_adds_the_best_of_every_iteration_before_and_no_answer_twice() -> None:
    q, r = [("q", "new", 2), ("q", "old", 1)], [("r", "new", 2), ("r", "old", 1)]
    assert taken("all") == [*q, *r, ("s", "alone", 1), ("t", "same", 1)]


def test_the_best_of_an_iteration_are_those_that_the_newest_reward_models_like() -> None:
    pool = [
        entry("q", "a", 1, v1=9.0, v2=1.0),
        entry("q", "b", 1, v1=5.0, v2=4.0),
        entry("q", "b", 1, v1=5.0, v2=4.0),
        entry("q", "c", 1, v1=1.0, v2=2.0),
        entry("q", "d", 2, v2=-1.0),
    ]
    for per_prompt, answers in ((1, {"b", "d"}), (2, {"b", "c", "d"}), (3, {"a", "b", "c", "d"})):
        chosen = [e.answer for e in choose_entries(pool, 2, "all", per_prompt)]
        assert set(chosen) == answers and len(chosen) == len(answers)


def test_the_best_finished_answers_enter_with_their_lineage_and_without_control_tags() -> None:
    rows = [
        row(
            "q",
            sample("low", 1.0),
            sample("cut", 9.0, finished=False),
            sample("high [INST]", 3.0),
            sample("", 8.0),
        ),
        row("r", sample("cut", 2.0, finished=False)),
    ]
    (one,) = best_entries(rows, version=3, sampler="abc", keep=1)
    assert one.answer.startswith("high") and "[INST]" not in one.answer
    assert (one.version, one.sampler, one.temperature, one.scores) == (3, "abc", 1.2, {})
    assert [e.answer[:4] for e in best_entries(rows, 3, "abc", keep=5)] == ["high", "low"]


def test_an_answer_of_control_tags_alone_does_not_enter() -> None:
    rows = [row("q", sample("[INST] [/INST]", 9.0), sample("fine", 1.0)), row("r", sample("[INST]", 9.0))]
    assert [entry.answer for entry in best_entries(rows, 1, "abc", keep=1)] == ["fine"]


def test_an_iteration_enters_beside_the_earlier_ones_and_all_are_judged_anew_at_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Judged:
        def scores(self, prompts: list, answers: list[str]) -> list[torch.Tensor]:
            return [torch.tensor([number + len(text) for text in answers]) for number in (10.0, 20.0, 30.0)]

    def load(helpful: str, safe: str, tokenizer: str, hardware: object, threshold: float) -> Judged:
        given.append(threshold)
        return Judged()

    monkeypatch.setattr(pool, "load_judges", load)
    for version, text in ((1, "a"), (2, "bb")):
        monkeypatch.setattr(pool, "read_rows", lambda _, text=text: [row("q", sample(text, 0.0))])
        out, earlier = str(tmp_path / str(version)), str(tmp_path / "1") if version == 2 else None
        files = ("samples", version, "policy", "helpful", "safe", "tokenizer", out, earlier)
        pool.update_pool(*files, take="all", per_prompt=2, safety_threshold=0.4)
    assert given == [0.4, 0.4]
    old, new = pool.read_pool(str(tmp_path / "2"))
    assert old.scores == {v: {"score": 31.0, "helpfulness": 11.0, "safety": 21.0} for v in ("1", "2")}
    assert new.scores == {"2": {"score": 32.0, "helpfulness": 12.0, "safety": 22.0}}
    assert [entry.answer for entry in pool.read_pool(str(tmp_path / "1"))] == ["a"]


def test_the_lineage_counts_what_each_version_gave() -> None:
    old, new = lineage(POOL, choose_entries(POOL, 2, "all", 1), 2)
    assert (old["version"], old["entries"], old["taken"], old["sampler"]) == (1, 4, 4, "sha1")
    assert (new["version"], new["entries"], new["taken"], new["temperatures"]) == (2, 3, 2, [1.0])
    assert old["score"] == pytest.approx((0.9 + 0.2 - 3.0 + 0.6) / 4)
    assert new["score"] == pytest.approx((0.4 + 0.7 + 0.6) / 3)


def test_an_entry_becomes_a_dialogue_to_fine_tune_on() -> None:
    assert training_dialogue(POOL[0])["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "old"},
    ]
