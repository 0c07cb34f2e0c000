"""Preference files in the wild become pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama2_pl.data.readers import PreferenceRow, ReadReport, preference_to_row, read_preferences, write_jsonl
from llama2_pl.text import Dialog

HELLO = Dialog.of([("user", "q")])
PANDA = {"instruction": "q", "response1": "b", "response2": "a"}


def _read(tmp_path: Path, *rows: Any, **options: Any) -> list[PreferenceRow]:
    path = tmp_path / "folder" / "rows.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_preferences(path, **options))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"},
        {
            "prompt": {"messages": [{"role": "user", "content": "q"}]},
            "chosen": "a",
            "rejected": "b",
            "task": 1,
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"value": "a"},
            "rejected": {"value": "b"},
        },
        {"instruction": "q", "input": "", "output": "a", "chosen": "a", "rejected": "b"},
        {"question": "q", "response_j": "a", "response_k": "b"},
        {
            "instruction": "q",
            "response1": "b",
            "response2": "a",
            "annotator1": 2,
            "annotator2": 0,
            "annotator3": 2,
        },
        {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.2},
        {"instruction": "q", "output_1": "b", "output_2": "a", "preference": 1.9},
    ],
)
def test_each_format_is_told_by_its_keys(tmp_path: Path, row: dict) -> None:
    assert _read(tmp_path, row) == [PreferenceRow(HELLO, "a", "b", source="folder/rows")]


def test_transcripts_keep_their_context(tmp_path: Path) -> None:
    context = "\n\nHuman: q\n\nAssistant: mine\n\nHuman: more\n\nAssistant:"
    (pair,) = _read(tmp_path, {"chosen": context + " a", "rejected": context + " b"})
    assert pair.prompt == Dialog.of([("user", "q"), ("assistant", "mine"), ("user", "more")])
    assert (pair.chosen, pair.rejected) == ("a", "b")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "empty chosen answer",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty rejected answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "chosen and rejected are equal"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
            "chosen and rejected have different contexts",
        ),
        (
            {"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "the transcript ends with a user",
        ),
        ({**PANDA, "annotator1": 0, "annotator2": 0, "annotator3": 2}, "tie"),
        ({**PANDA, "annotator1": 1, "annotator2": 0, "annotator3": 2}, "tie"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5}, "tie"),
    ],
)
def test_pairs_that_teach_nothing_are_skipped_and_counted(tmp_path: Path, row: dict, reason: str) -> None:
    report = ReadReport()
    assert _read(tmp_path, row, report=report) == []
    assert [found.startswith(reason) for found in report.unusable] == [True]


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": 4}, r"rating 4: give 0 .* to 3"),
        ({"rating": True}, "rating True"),
        ({"rating": 1.0}, "rating 1.0"),
        ({"rating": float("nan")}, "NaN is not a JSON number"),
        ({"chosen_safe": "yes"}, "key 'chosen_safe' is str 'yes', and must be true, false or null"),
        ({"prompt": 3}, "key 'prompt' is int"),
        ({"chosen_safe": False, "rejected_safe": True}, "chosen is unsafe and rejected is safe"),
        ({"batch": 0}, "batch 0: give the number of the weekly batch, from 1"),
        ({"batch": "3"}, "batch '3'"),
        ({"rejected_temperature": -0.1}, "rejected_temperature -0.1: give a number of 0 or more"),
        ({"chosen_model": 7}, "key 'chosen_model' is int 7, and must be a string"),
        ({"annotator": 7}, "key 'annotator' is int 7, and must be a string"),
    ],
)
def test_wrong_values_stop_with_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: {message}"):
        _read(tmp_path, PAIR, {**PAIR, **change})


@pytest.mark.parametrize(
    ("chosen_safe", "rejected_safe"), [(True, False), (True, True), (False, False), (None, True)]
)
def test_the_three_safety_bins_are_read(
    tmp_path: Path, chosen_safe: bool | None, rejected_safe: bool
) -> None:
    (pair,) = _read(tmp_path, {**PAIR, "chosen_safe": chosen_safe, "rejected_safe": rejected_safe})
    assert (pair.chosen_safe, pair.rejected_safe) == (chosen_safe, rejected_safe)


def test_source_and_safety_tag_may_be_forced(tmp_path: Path) -> None:
    row = {**PAIR, "source": "own", "is_safety": True}
    assert _read(tmp_path, row)[0][6:8] == ("own", True)
    assert _read(tmp_path, row, source="other", is_safety=False)[0][6:8] == ("other", False)


def test_our_own_rows_come_back_as_they_went(tmp_path: Path) -> None:
    context = Dialog.of([("system", "s"), ("user", "q"), ("assistant", "x"), ("user", "more")])
    pairs = [
        PreferenceRow(context, "a", "b", 2, True, False, "x", True, "v1", "v2", 0.7, 1.0, 14, "Ada"),
        PreferenceRow(HELLO, "é\n", "ß", source="x"),
    ]
    write_jsonl(tmp_path / "p.jsonl", map(preference_to_row, pairs))
    assert list(read_preferences(tmp_path / "p.jsonl")) == pairs


def test_rows_written_before_the_schema_was_whole_are_read(tmp_path: Path) -> None:
    (pair,) = _read(tmp_path, {**PAIR, "rating": 1, "source": "x"})
    assert pair == PreferenceRow(HELLO, "a", "b", 1, source="x")
    assert (pair.batch, pair.annotator, pair.chosen_model, pair.chosen_temperature) == (None, "", "", None)


@pytest.mark.parametrize(("preference", "models"), [(1.2, ("one", "two")), (2, ("two", "one"))])
def test_a_judges_file_says_who_judged_which_models(
    tmp_path: Path, preference: float, models: tuple[str, str]
) -> None:
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": preference}
    judged = {**row, "generator_1": "one", "generator_2": "two", "annotator": "judge"}
    (pair,) = _read(tmp_path, judged)
    assert (pair.chosen_model, pair.rejected_model, pair.annotator) == (*models, "judge")


REAL = {
    "hh-rlhf/helpful-base/test.jsonl.gz": 1782,
    "hh-rlhf/harmless-base/test.jsonl.gz": 1791,
    "hh-rlhf/helpful-online/test.jsonl.gz": 894,
    "llamafactory/dpo_en_demo.json": 220,
    "rasbt/instruction-data-with-preference.json": 844,
    "stackexchange/stack_exchange_paired_tiny.json": 25,
    "pandalm/testset-v1.json": 842,
    "alpaca_eval/alpaca-7b.annotations.json": 299,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_they_are(shared: Path, name: str) -> None:
    report = ReadReport()
    pairs = list(read_preferences(shared / "preference" / name, report=report))
    assert (len(pairs), report.malformed) == (REAL[name], 0)
    assert all(pair.prompt.messages[-1].role == "user" and pair.chosen != pair.rejected for pair in pairs)


def test_unpaired_labels_are_refused(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"kto_en_demo\.json:2: .*fit no known format"):
        list(read_preferences(shared / "preference" / "llamafactory" / "kto_en_demo.json"))
