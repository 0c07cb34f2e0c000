"""Prompt files in the wild become prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2_pl.data.readers import PromptRow, ReadReport, prompt_to_row, read_prompts, write_jsonl
from llama2_pl.text import Dialog


def _question(text: str) -> Dialog:
    return Dialog.of([("user", text)])


def _write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, PromptRow(_question("q"), False, "p.jsonl:1")),
        ({"prompt": "q", "is_safety": True, "id": 7}, PromptRow(_question("q"), True, "7")),
        ({"question_id": 81, "turns": ["q", "then"]}, PromptRow(_question("q"), False, "81")),
        (
            {"instruction": "Do", "input": "x", "output": "y"},
            PromptRow(_question("Do\n\nx"), False, "p.jsonl:1"),
        ),
        ({"question": "q"}, PromptRow(_question("q"), False, "p.jsonl:1")),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": ""},
            PromptRow(Dialog.of([("user", "a"), ("assistant", "b"), ("user", "c")]), False, "p.jsonl:1"),
        ),
        (
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            PromptRow(_question("u"), False, "p.jsonl:1"),
        ),
        (
            {"messages": [{"role": "user", "content": "u"}], "is_safety": True, "id": "x", "task": {}},
            PromptRow(_question("u"), True, "x"),
        ),
        ({"conversations": [{"from": "human", "value": "u"}]}, PromptRow(_question("u"), False, "p.jsonl:1")),
    ],
)
def test_each_json_format_is_told_by_its_keys(tmp_path: Path, row: dict, expected: PromptRow) -> None:
    path = _write(tmp_path / "p.jsonl", json.dumps(row) + "\n")
    assert list(read_prompts(path)) == [expected]
    assert next(iter(read_prompts(path, is_safety=True))).is_safety


TASK = {"kind": "safety", "answers": ["No."]}


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"messages": [{"role": "user", "content": "q"}]}])
def test_a_task_is_read_where_somebody_asks(tmp_path: Path, row: dict) -> None:
    path = _write(tmp_path / "p.jsonl", json.dumps({**row, "task": TASK}) + "\n")
    assert [r.task for r in read_prompts(path)] == [None]
    for tasks in ("optional", "required"):
        assert list(read_prompts(path, tasks=tasks)) == [PromptRow(_question("q"), False, "p.jsonl:1", TASK)]


def test_a_task_that_no_oracle_knows_is_refused_where_one_judges_and_nowhere_else(tmp_path: Path) -> None:
    lines = ['{"prompt": "q"}', '{"prompt": "q", "task": "QA"}', '{"prompt": "q", "task": {"kind": "fact"}}']
    paths = [_write(tmp_path / f"{n}.jsonl", f"{line}\n") for n, line in enumerate(lines)]
    assert [len(list(read_prompts(path))) for path in paths] == [1, 1, 1]
    assert next(read_prompts(paths[0], tasks="optional")).task is None
    with pytest.raises(ValueError, match=r"0\.jsonl:1: no 'task'.*ratings from people"):
        list(read_prompts(paths[0], tasks="required"))
    with pytest.raises(ValueError, match=r"1\.jsonl:1: key 'task' is str 'QA'"):
        list(read_prompts(paths[1], tasks="optional"))
    with pytest.raises(
        ValueError, match=r"2\.jsonl:1: key 'task' is .*'fact'.* without about, allowed, answers"
    ):
        list(read_prompts(paths[2], tasks="optional"))


def test_text_lines_are_prompts_and_blank_ones_are_counted(tmp_path: Path) -> None:
    report = ReadReport()
    rows = list(read_prompts(_write(tmp_path / "p.txt", "\ufeffone\r\n\r\ntwo"), report=report))
    assert [(row.prompt, row.id) for row in rows] == [
        (_question("one"), "p.txt:1"),
        (_question("two"), "p.txt:3"),
    ]
    assert report.unusable == {"empty prompt": 1}


def test_csv_cells_may_hold_line_breaks(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.csv", '\ufeffid,prompt,other\n1,"a\nb, c",x\n2,d,y\n')
    assert [row.prompt for row in read_prompts(path)] == [_question("a\nb, c"), _question("d")]
    assert [row.prompt for row in read_prompts(path, column="other")] == [_question("x"), _question("y")]
    with pytest.raises(ValueError, match=r"p\.csv:1: no column 'absent'"):
        list(read_prompts(path, column="absent"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,x\na,b\n\xe9,c\n", "UTF-8"),
        (b'prompt\n"a\n', "CSV"),
        (b"x,prompt\na\n", "p.csv:2: the row has no column 'prompt'"),
        (b"x\na\n", "no column 'of prompt"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_prompts(path))


def test_a_csv_label_that_says_unsafe_is_the_tag_and_any_other_is_not(tmp_path: Path) -> None:
    rows = "id,prompt,type,label\n1,How can I kill a process?,a,safe\n2,How can I kill a cat?,b,unsafe\n3,Why?,c,2\n"
    path = _write(tmp_path / "p.csv", rows)
    assert [row.is_safety for row in read_prompts(path)] == [False, True, False]
    assert [row.is_safety for row in read_prompts(path, is_safety=False)] == [False] * 3


def test_a_column_for_what_is_no_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column 'prompt' is for CSV files"):
        list(read_prompts(_write(tmp_path / "p.txt", "a"), column="prompt"))


def test_our_own_rows_come_back_as_they_went(tmp_path: Path) -> None:
    context = Dialog.of([("system", "s"), ("user", "q"), ("assistant", "x"), ("user", "more")])
    rows = [PromptRow(context, True, "a"), PromptRow(_question("é"), False, "b", TASK)]
    write_jsonl(tmp_path / "p.jsonl", map(prompt_to_row, rows))
    assert list(read_prompts(tmp_path / "p.jsonl", tasks="optional")) == rows


REAL = {
    "prompts/mt_bench/question.jsonl": 60,
    "prompts/safety/xstest_prompts.csv": 300,
    "prompts/safety/advbench_harmful_behaviors.csv": 350,
    "prompts/system/awesome_chatgpt_prompts.csv": 150,
    "prompts/toxigen/neutral_women_1k.txt": 200,
    "prompts/anthropic_evals/agreeableness.jsonl": 500,
    "preference/hh-rlhf/harmless-base/test.jsonl.gz": 1795,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_they_are(shared: Path, name: str) -> None:
    rows = list(read_prompts(shared / name))
    assert len(rows) == len({row.id for row in rows}) == REAL[name]


def test_bold_is_one_object_of_groups_and_its_empty_prompts_are_counted(shared: Path) -> None:
    report = ReadReport()
    path = shared / "prompts" / "bold" / "political_ideology_prompt.json"
    rows = list(read_prompts(path, format="bold", report=report))
    expected = [
        prompt
        for group in json.loads(path.read_bytes()).values()
        for prompts in group.values()
        for prompt in prompts
    ]
    assert [row.prompt.messages[0].content for row in rows] == [
        prompt for prompt in expected if prompt.strip()
    ]
    assert report.unusable == {"empty prompt": 3}
