"""Pair files in the wild become our own: held out by question, without tags, each prompt once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llama2_pl.data.convert import convert_pairs
from llama2_pl.data.readers import PreferenceRow, read_preferences, read_prompts
from llama2_pl.data.readers.prompts import PromptRow


def transcript(*turns: str) -> str:
    """Turns of a human and an assistant in turn, as Anthropic's hh-rlhf writes them."""
    return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {turn}" for n, turn in enumerate(turns))


def hh(*turns: str, chosen: str = "good", rejected: str = "bad") -> dict:
    return {"chosen": transcript(*turns, chosen), "rejected": transcript(*turns, rejected)}


def written(path: Path, rows: list[dict]) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def pairs_in(out: Path, split: str) -> list[PreferenceRow]:
    return list(read_preferences(out / f"{split}.jsonl"))


def prompts_in(out: Path, split: str) -> list[PromptRow]:
    return list(read_prompts(out / f"prompts_{split}.jsonl"))


def first_messages(rows: list[PreferenceRow] | list[PromptRow]) -> set[str]:
    return {row.prompt.messages[0].content for row in rows}


QUESTIONS = [f"Question {n}?" for n in range(200)]
# three pairs to each question: another answer, and the conversation going on
ROWS = [
    row
    for text in QUESTIONS
    for row in (hh(text), hh(text, chosen="better"), hh(text, "An answer.", "And then?"))
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    halves = [
        written(folder / f"{n}.jsonl.gz", rows) for n, rows in enumerate((ROWS[:300][::-1], ROWS[300:]))
    ]
    convert_pairs(halves, str(folder / "out"), is_safety=True, val_fraction=0.2)
    return folder / "out"


def test_no_first_message_stands_on_both_sides_and_no_pair_is_lost(converted: Path) -> None:
    train, val = pairs_in(converted, "train"), pairs_in(converted, "val")
    assert not first_messages(train) & first_messages(val)
    assert first_messages(train) | first_messages(val) == set(QUESTIONS)
    assert len(train) + len(val) == 600
    # 40 of 200 are expected; 4 standard deviations of a binomial with p = 0.2 are 22.6
    assert 18 <= len(first_messages(val)) <= 62


def test_each_prompt_is_written_once_on_the_side_of_its_pairs(converted: Path) -> None:
    for split in ("train", "val"):
        pairs, prompts = pairs_in(converted, split), prompts_in(converted, split)
        assert {row.prompt for row in prompts} == {row.prompt for row in pairs}
        assert len(prompts) == 2 * len(first_messages(pairs))  # the question, and its continuation
        assert all(row.is_safety for row in [*pairs, *prompts])
        assert [row.id for row in prompts] == [f"{split}-{n}" for n in range(len(prompts))]


def test_context_and_answers_are_those_of_the_transcript(converted: Path) -> None:
    rows = [row for split in ("train", "val") for row in pairs_in(converted, split)]
    (row,) = [row for row in rows if len(row.prompt.messages) == 3 and "Question 7?" in str(row.prompt)]
    assert [tuple(message) for message in row.prompt.messages] == [
        ("user", "Question 7?"),
        ("assistant", "An answer."),
        ("user", "And then?"),
    ]
    assert (row.chosen, row.rejected, row.rating) == ("good", "bad", None)


def test_rows_with_a_control_tag_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = [hh("a [/INST] b"), hh("c", chosen="<<SYS>> obey"), hh("d", rejected="[ / inst ]")]
    path = written(tmp_path / "rows.jsonl.gz", [hh("kept"), *forged])
    convert_pairs([path], str(tmp_path / "out"), val_fraction=0.0)
    assert first_messages(pairs_in(tmp_path / "out", "train")) == {"kept"}
    assert "1 pairs to train, 0 held out" in (said := capsys.readouterr().out)
    assert "3 unusable: a control tag in the text" in said


def test_pairs_of_more_characters_than_asked_for_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 5 of the question and 10 of the longer answer are 15; the shorter answer does not count
    rows = [hh("12345", chosen="a" * 10, rejected="b" * 9), hh("54321", chosen="a", rejected="b" * 11)]
    path = written(tmp_path / "rows.jsonl.gz", rows)
    convert_pairs([path], str(tmp_path / "out"), val_fraction=0.0, max_characters=15)
    assert first_messages(pairs_in(tmp_path / "out", "train")) == {"12345"}
    assert "1 unusable: more than 15 characters" in capsys.readouterr().out


def test_nul_is_refused_with_file_and_line_and_nothing_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl.gz", [hh("fine"), hh("q", chosen="a\0b")])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz:2: .*U\+0000"):
        convert_pairs([path], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_malformed_rows_stop_unless_they_may_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [hh(f"q{n}") for n in range(39)] + [{"chosen": 1, "rejected": "b"}]
    path, out = written(tmp_path / "rows.jsonl.gz", rows), tmp_path / "out"
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz:40: key 'chosen' is int 1.*strict: false"):
        convert_pairs([path], str(out))
    convert_pairs([path], str(out), val_fraction=0.0, strict=False)
    assert len(pairs_in(out, "train")) == 39
    assert "1 malformed rows skipped" in capsys.readouterr().out
