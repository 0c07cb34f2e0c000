"""Labelled refusals, borderline prompts and safety data apart; what was embedded before stays as it was."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from llama2_pl.data.default import refusals, write, write_default_data
from llama2_pl.data.default.oracle import REFUSALS, gold_score, judge
from llama2_pl.data.default.safety import CATEGORIES, OPENERS, safety_task
from llama2_pl.data.default.world import build_world

WORLD = build_world(0)
# Of `data default --seed 0 --scale 0.05` before there was any of this: what the demo's committed figures rest on.
BEFORE = {
    "corpus/world.jsonl": "fce3c80e1e0eb5440ff23e2d3af523e2d40ccdb84687d481cff51afba58a1f7e",
    "gatt/constraints.jsonl": "650dc83a16987d1554a79a6f1960f6001c63709f2328c0deca48e402dac3ba72",
    "gatt/dialogues.jsonl": "d3534a9ef1c9a91fa8397dd8e6c73b3b0063e05a90268bc10d4762b7473de891",
    "gatt/eval.jsonl": "a511f45c850d1d546fc383b2ebf828957b8effe8678894ee148eadbcfe4d7c9d",
    "preferences/helpful_train.jsonl": "ff029f8bd8cdae4cd724bd63660eea3f7408bde5f29711c2fbb1641bb3768b02",
    "preferences/helpful_val.jsonl": "02f737d242e2e3cbaefb7b05938b940929f1e5d2fc80ac5aa252486ccc8f0b07",
    "preferences/safety_train.jsonl": "ad99fbf85eaf1ae03856d0053ae10314d0c68e92605de027892a77c858d6cf02",
    "preferences/safety_val.jsonl": "3ce4563bf8d929ac983b719e53877c5c186dfb851bb8f1dbdcad63e438586505",
    "prompts/train.jsonl": "cc9304415906eecfab5f50b39e759476aaf3f2d9c0adf5366bbe4135e867072c",
    "prompts/val.jsonl": "a72dbf3b5f2bec660f2d5f855de3c51deab7867b7972645451f73bb5deb704de",
    "sft/train.jsonl": "8c878e249f0140719a36d2b08b348902264808a8dd9148420eb25329b94557aa",
    "sft/val.jsonl": "3bf35c4c362818e655fdf6714a6330c9d7807dee561b4d739a13678538f0bdbd",
}


def test_the_files_of_before_are_byte_for_byte_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "PACKAGE_SOURCES", {})
    write_default_data(str(tmp_path), scale=0.05)
    found = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in BEFORE}
    assert found == BEFORE


def test_half_of_the_labelled_answers_refuse_and_only_they_do() -> None:
    train = refusals.labelled_rows(WORLD, 600, "train", random.Random(1))
    val = refusals.labelled_rows(WORLD, 200, "phrase", random.Random(2))
    for rows in (train, val):
        assert sum(row["refusal"] for row in rows) == len(rows) / 2
    first = {sentence.rstrip(".") for sentence in refusals.REFUSING}
    for row in (*train, *val):
        assert row["refusal"] == any(sentence in row["text"] for sentence in first), row


def test_the_last_wordings_are_held_out() -> None:
    held = (refusals.REFUSING[-1], "I do not know how old the")
    train = refusals.labelled_rows(WORLD, 600, "train", random.Random(1))
    val = refusals.labelled_rows(WORLD, 200, "phrase", random.Random(2))
    assert not any(words in row["text"] for row in train for words in held)
    assert all(held[0] in row["text"] for row in val if row["refusal"])
    assert any(held[1] in row["text"] for row in val)


def test_borderline_prompts_differ_and_a_good_answer_is_right_and_a_refusal_is_not() -> None:
    rows = refusals.borderline_rows(WORLD, 210, random.Random(3))
    asked = [row["messages"][-1]["content"] for row in rows]
    assert len(set(asked)) == 210 and not any(row["is_safety"] for row in rows)
    parts = [part for one in CATEGORIES.values() for part in (*one.reasons, *one.offers)]
    refusal = " ".join([*refusals.REFUSING, *parts])  # whatever a refusal may say
    for row, text in zip(rows, asked, strict=True):
        assert row["task"]["question"] == text
        for answer in row["task"]["answers"]:
            assert judge(row["task"], answer).correct, (text, answer)
            assert gold_score(row["task"], answer) == pytest.approx(1.0)
        assert not judge(row["task"], refusal).on_topic
    assert sum(row["task"]["kind"] == "social" for row in rows) == 105


def test_borderline_prompts_are_no_request_of_the_safety_prompts_and_none_of_training() -> None:
    """The verbs are the same, the requests are not."""
    rng = random.Random(5)
    harmful = {
        safety_task(WORLD, split, rng)["question"]
        for split in ("train", "fact", "phrase")
        for _ in range(3000)
    }
    asked = {row["messages"][0]["content"] for row in refusals.borderline_rows(WORLD, 210, random.Random(3))}
    assert not asked & harmful


def test_safety_data_refuses_and_helpfulness_data_complies() -> None:
    safety = refusals.safety_data(WORLD, 60, random.Random(6))
    answers = [row["messages"][at]["content"] for row in safety for at in range(1, len(row["messages"]), 2)]
    assert all(any(words in answer for words in REFUSALS) for answer in answers)
    rows = refusals.helpfulness_data(WORLD, 600, random.Random(7))
    turns = [
        (row["messages"][at]["content"], row["messages"][at + 1]["content"])
        for row in rows
        for at in range(0, len(row["messages"]), 2)
    ]
    complied = [answer for _, answer in turns if answer.startswith(OPENERS)]
    assert 0.01 < len(complied) / len(turns) < 0.06
    assert not any(words in answer for _, answer in turns for words in REFUSALS)
    assert json.dumps(rows) == json.dumps(refusals.helpfulness_data(WORLD, 600, random.Random(7)))
