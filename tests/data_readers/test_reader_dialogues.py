"""Instruction files in the wild become dialogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.data.readers import ReadReport, dialog_to_row, read_dialogues, write_jsonl
from llama2_pl.text import Dialog


def _read(tmp_path: Path, *rows: Any, report: ReadReport | None = None) -> list[list[tuple[str, str]]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [[tuple(m) for m in dialog.messages] for dialog in read_dialogues(path, report=report)]  # type: ignore[misc]


def _one(user: str, answer: str) -> list[tuple[str, str]]:
    return [("user", user), ("assistant", answer)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Do", "input": "", "output": "Done"}, _one("Do", "Done")),
        ({"instruction": "Do", "input": "this", "output": "Done"}, _one("Do\n\nthis", "Done")),
        ({"instruction": "Do", "context": "c", "response": "r", "category": "x"}, _one("Do\n\nc", "r")),
        ({"input": "q", "output": "a"}, _one("q", "a")),
        ({"prompt": "p", "completion": " c<|endoftext|>"}, _one("p", "c")),
        ({"chosen": "\n\nHuman: h\n\nAssistant: good", "rejected": ""}, _one("h", "good")),
        (
            {"utterances": [{"speaker": "user", "text": "u"}, {"speaker": "assistant", "text": "a"}]},
            _one("u", "a"),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            [("system", "s"), *_one("u", "a")],
        ),
        (
            {"messages": [{"role": r, "content": r[0]} for r in ("system", "user", "assistant")]},
            [("system", "s"), *_one("u", "a")],
        ),
    ],
)
def test_each_format_is_told_by_its_keys(tmp_path: Path, row: dict, expected: list) -> None:
    assert _read(tmp_path, row) == [expected]


def test_self_instruct_gives_one_dialogue_an_instance(tmp_path: Path) -> None:
    row = {"instruction": "Add", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "?"}]}
    assert _read(tmp_path, row) == [_one("Add\n\n1 1", "2"), _one("Add", "?")]


def test_oasst_follows_the_best_ranked_reply_up_to_the_last_answer(tmp_path: Path) -> None:
    def node(text: str, role: str, rank: int | None, *replies: dict) -> dict:
        return {"text": text, "role": role, "rank": rank, "replies": list(replies)}

    worse = node("worse", "assistant", 1)
    best = node("best", "assistant", 0, node("next", "prompter", None, node("end", "assistant", None)))
    deleted = {**node("gone", "assistant", 0), "deleted": True}
    tree = node("q", "prompter", None, node("unranked", "assistant", None), deleted, worse, best)
    assert _read(tmp_path, {"message_tree_id": "1", "prompt": tree}) == [
        [*_one("q", "best"), *_one("next", "end")]
    ]
    best["replies"][0]["replies"] = []
    assert _read(tmp_path, {"message_tree_id": "1", "prompt": tree}) == [_one("q", "best")]


def test_a_name_inside_a_paragraph_starts_no_turn(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: say Human: hi\nAssistant: x\n\nAssistant: ok", "rejected": ""}
    assert _read(tmp_path, row) == [_one("say Human: hi\nAssistant: x", "ok")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "function_call", "value": "{}"}]},
            "role 'func",
        ),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "a message has role 'assistant'"),
        ({"conversations": [{"from": "human", "value": "u"}]}, "ends with a user message"),
        ({"conversations": []}, "the dialogue has no user message"),
        ({"instruction": "Do", "output": "  "}, "empty assistant message"),
        ({"messages": [{"role": "user", "content": "u"}], "label": False}, "labelled a bad answer"),
    ],
)
def test_rows_that_teach_nothing_are_skipped_and_counted(tmp_path: Path, row: dict, reason: str) -> None:
    report = ReadReport()
    assert _read(tmp_path, row, report=report) == []
    assert report.malformed == 0
    assert [found.startswith(reason) for found in report.unusable] == [True]


def test_the_format_of_the_first_row_holds_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: key 'output' is missing"):
        _read(tmp_path, {"instruction": "a", "output": "b"}, {"instruction": "a", "response": "b"})


def test_our_own_rows_come_back_as_they_went(tmp_path: Path) -> None:
    dialogs = [
        Dialog.of([("system", "s"), ("user", " spaces kept "), ("assistant", "é\n\u2028x")]),
        Dialog.of([("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]),
    ]
    write_jsonl(tmp_path / "d.jsonl", map(dialog_to_row, dialogs))
    assert list(read_dialogues(tmp_path / "d.jsonl")) == dialogs


# Rows of the file less those that its notes or a look at them tell to be unusable.
REAL = {
    "sft/rasbt/instruction-data.json": (850, 0),
    "sft/codealpaca/code_alpaca_2k.json": (1499, 1),
    "sft/sharegpt/dummy_conversation.json": (500, 0),
    "sft/sharegpt/glaive_toolcall_en_demo.json": (111, 109),
    "sft/oasst/en_100_tree.jsonl": (70, 0),
    "sft/self-instruct/seed_tasks.jsonl": (130, 0),
    "sft/taskmaster/TM-4-2024_data_07.json": (210, 0),
    "sft/t0-p3/sciq_Direct_Question.jsonl": (200, 0),
    "sft/t0-p3/trec_fine_grained_ABBR_context_first.jsonl": (0, 0),
    "sft/litgpt-fixtures/dolly.json": (12, 0),
    "sft/litgpt-fixtures/longform_train.json": (17, 0),
    "preference/hh-rlhf/helpful-online/test.jsonl.gz": (899, 1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_they_are(shared: Path, name: str) -> None:
    report = ReadReport()
    dialogs = list(read_dialogues(shared / name, report=report))
    assert (len(dialogs), report.skipped, report.malformed) == (*REAL[name], 0)
    assert not any("<|endoftext|>" in m.content for d in dialogs for m in d.messages)
