"""Persistence of an instruction, with a model whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2_pl.evaluation import gatt
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(
        ["the cat sat on the mat\nand the dog ran\n" * 20], folder, vocab_size=290, num_threads=1
    )


def forgetful(seen: list[list[Dialog]]):
    """Answers in capitals on the first turn, and again later only where the instruction says "always"."""

    def answer(model, tokenizer, dialogs, **options):
        seen.append(list(dialogs))
        return [
            "YES [INST]" if len(d.messages) == 2 or "always" in d.messages[0].content else "no"
            for d in dialogs
        ]

    return answer


ROOMY = LanguageModel(ModelConfig(dim=16, n_layers=1, n_heads=1, vocab_size=290, max_seq_len=1024))
CASES = [
    gatt.Case("Speak in capitals.", ("a", "b", "c", "d"), str.isupper, "capitals"),
    gatt.Case("always speak in capitals.", ("a", "b", "c", "d"), str.isupper, "capitals"),
    gatt.Case("Say no.", ("a", "b", "c", "d"), lambda text: text == "no", "word"),
]


def test_shares_by_turn_are_counted_with_the_models_own_answers_in_context(monkeypatch, tokenizer):
    seen: list[list[Dialog]] = []
    monkeypatch.setattr(gatt, "answer", forgetful(seen))
    result = gatt.persistence(ROOMY, tokenizer, CASES, turns=(1, 2, 4))
    assert {turn: row["mean"] for turn, row in result.by_turn.items()} == {
        "1": pytest.approx(2 / 3),
        "2": pytest.approx(2 / 3),
        "4": pytest.approx(2 / 3),
    }
    assert {turn: row["mean"] for turn, row in result.by_name["capitals"].items()} == {
        "1": 1.0,
        "2": 0.5,
        "4": 0.5,
    }
    assert result.by_name["capitals"]["2"]["count"] == 2
    assert result.by_name["word"]["4"]["mean"] == 1.0
    json.dumps([result.by_turn, result.by_name])
    # turn 3 of the first case: instruction once, then its own answers, the first without its control tag
    assert [tuple(message) for message in seen[2][0].messages] == [
        ("system", "Speak in capitals."),
        ("user", "a"),
        ("assistant", "YES"),
        ("user", "b"),
        ("assistant", "no"),
        ("user", "c"),
    ]


def test_a_case_with_too_few_turns_is_refused(tokenizer):
    case = gatt.Case("Be brief.", ("a", "b"), bool, "length")
    with pytest.raises(ValueError, match="has 2 user turns; turn 4 was asked for"):
        gatt.persistence(None, tokenizer, [case])  # pyright: ignore[reportArgumentType]


def test_a_real_model_is_asked_turn_after_turn(tokenizer):
    config = ModelConfig(
        dim=32, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size, multiple_of=16, max_seq_len=256
    )
    result = gatt.persistence(LanguageModel(config), tokenizer, CASES, turns=(1, 2), max_new_tokens=4)
    assert result.by_turn["2"]["count"] == 3
    assert len(result.dialogs[0].messages) == 5


def test_a_dialogue_and_its_answer_may_fill_the_context(tokenizer):
    dialog = Dialog.of([("system", "Speak in capitals."), ("user", "a")])
    room = 1024 - len(encode_prompt(dialog, tokenizer))
    gatt.require_room(ROOMY, tokenizer, [dialog], 1, room)
    with pytest.raises(ValueError, match=f"max_new_tokens {room + 1} only {1024 - room - 1} fit"):
        gatt.require_room(ROOMY, tokenizer, [dialog], 1, room + 1)


def test_a_dialogue_that_leaves_no_room_is_refused_by_turn_before_it_is_cut(monkeypatch, tokenizer):
    model = LanguageModel(ModelConfig(dim=16, n_layers=1, n_heads=1, vocab_size=290, max_seq_len=256))
    # the questions alone do not fit: refused before anything is sampled
    with pytest.raises(ValueError, match=r"turn 20: .*max_new_tokens 4 only 252 fit.*max_seq_len 256"):
        long = [case._replace(user_turns=("and the dog ran",) * 20) for case in CASES]
        gatt.persistence(model, tokenizer, long, turns=(2, 20), max_new_tokens=4)
    # the questions do, the answers do not: refused at the turn that they reach
    monkeypatch.setattr(
        gatt, "answer", lambda model, tokenizer, dialogs, **how: ["the cat " * 40] * len(dialogs)
    )
    with pytest.raises(ValueError, match=r"turn 3: .*fine-tune with a longer model\.max_seq_len"):
        gatt.persistence(model, tokenizer, CASES, turns=(4,), max_new_tokens=4)
