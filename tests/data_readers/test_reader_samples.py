"""Evaluation samples as text: which keys are read, metrics, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.data.readers import EvaluationSample, SampleKeys, read_samples


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, *keys: str, metric: str | None = None) -> list[EvaluationSample]:
    return list(read_samples(path, SampleKeys(path.name, keys, metric)))


MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "All of it.", "question": "not read"}, "All of it."),
        ({"messages": MESSAGES}, "Who?\nAnna."),
        ({"conversations": [{"from": "human", "value": "Who?"}]}, "Who?"),
        ({"prompt": "Who?", "answer": "Anna."}, "Who?\nAnna."),
        ({"prompt": MESSAGES[:1], "completion": "Anna."}, "Who?\nAnna."),
        ({"prompt": {"messages": MESSAGES[:1]}}, "Who?"),
        ({"instruction": "Sum.", "input": "", "output": "3"}, "Sum.\n3"),
        ({"question": "is it so", "answer": False}, "is it so\nFalse"),
        ({"question": "when", "answer": ["1972", "in 1972"]}, "when\n1972\nin 1972"),
    ],
)
def test_the_keys_tell_what_makes_the_text(tmp_path: Path, row: dict, text: str) -> None:
    assert [sample.text for sample in read(written(tmp_path / "rows.jsonl", row))] == [text]


def test_named_keys_are_read_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"text": "c", "passage": "a", "options": ["x", "y"], "n": None})
    assert read(path, "passage", "text", "n", "options")[0].text == "a\nc\nx\ny"


def test_the_keys_of_the_first_row_hold_for_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"prompt": "a", "answer": "b"}, {"prompt": "c"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: key 'answer' is missing"):
        read(path)


def test_a_sample_has_its_id_or_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"text": "a", "id": 0}, {"text": "b"})
    assert [sample.id for sample in read(path)] == ["0", "rows.jsonl:2"]


def test_a_metric_is_a_number_or_a_truth_value(tmp_path: Path) -> None:
    rows = [{"text": "a", "score": value} for value in (True, False, 0.25, 3)]
    path = written(tmp_path / "rows.jsonl", *rows)
    assert [sample.metric for sample in read(path, metric="score")] == [1.0, 0.0, 0.25, 3.0]
    assert [sample.metric for sample in read(path)] == [None] * 4


def test_csv_rows_are_samples_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'question,choice,correct\n"Which,\none?",This,True\nWhy?,That,0.5\n', encoding="utf-8-sig"
    )
    assert read(path, "question", "choice", metric="correct") == [
        ("Which,\none?\nThis", "rows.csv:3", 1.0),
        ("Why?\nThat", "rows.csv:4", 0.5),
    ]
    path.write_text("question,choice\nWhy?\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv:2: key 'choice' is missing"):
        read(path, "question", "choice")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "a"}, "key 'score' is missing"),
        ({"text": "a", "score": None}, "key 'score' is None, and a metric must be"),
        ({"text": "a", "score": "good"}, "key 'score' is 'good', and a metric must be"),
        ({"text": "a", "score": 10**400}, "key 'score' is 1000.*and a metric must be"),
        ({"text": " ", "score": 1}, "no text under text"),
        ({"text": {"a": 1}, "score": 1}, "key 'text' holds .*neither text nor messages"),
        ({"passage": "a", "score": 1}, ".*have none of text, messages.*name those"),
        (1, "the row is int 1"),
    ],
)
def test_what_is_no_sample_stops_with_file_and_line(tmp_path: Path, row: Any, why: str) -> None:
    path = written(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: {why}"):
        read(path, metric="score")


@pytest.mark.parametrize(
    ("file", "keys", "count"),
    [
        ("gsm8k/test.jsonl", (), 900),
        ("humaneval/HumanEval.jsonl.gz", ("prompt", "canonical_solution"), 120),
        ("boolq/dev.jsonl", ("passage", "question"), 2400),
        ("agieval/lsat-lr.jsonl", ("passage", "question", "options"), None),
        ("truthfulqa/TruthfulQA.csv", ("Question", "Best Answer"), 600),
    ],
)
def test_real_evaluation_sets_are_read(
    shared: Path, file: str, keys: tuple[str, ...], count: int | None
) -> None:
    samples = read(shared / "eval" / file, *keys)
    assert len(samples) == (count or len(samples)) > 0
    assert all(sample.text.strip() for sample in samples)
