"""What is written: the same for a seed on every run, read by the readers, split without overlap."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama2_pl.data.default import stdlib_text, write, write_default_data
from llama2_pl.data.default.oracle import MAXIMUM, judge
from llama2_pl.data.readers import read_dialogues, read_preferences
from llama2_pl.data.readers.prompts import read_prompts
from llama2_pl.text.chat import validate_roles
from llama2_pl.text.constraints import constraint_kept, read_constraints
from llama2_pl.text.tags import find_control_tags

NAMES = {
    *(f"corpus/{name}.jsonl" for name in ("world", "prose", "code", "docs")),
    *(f"{name}/{split}.jsonl" for name in ("sft", "prompts") for split in ("train", "val")),
    *(f"preferences/{kind}_{split}.jsonl" for kind in ("helpful", "safety") for split in ("train", "val")),
    *(f"gatt/{name}.jsonl" for name in ("constraints", "dialogues", "eval")),
    *(f"refusals/{name}.jsonl" for name in ("train", "val", "borderline")),
    *(f"safety_scaling/{name}.jsonl" for name in ("helpful", "safety")),
    "README.md",
    "complete.json",
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def without_package_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "PACKAGE_SOURCES", {})


def test_the_files_are_those_that_the_configs_name(written: Path) -> None:
    assert set(digest(written)) == NAMES


def test_another_process_with_another_hash_seed_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the package's __init__ loads torch and lightning, which takes longer than this test may
    code = (
        "import sys, types, llama2_pl; data = sys.modules['llama2_pl.data'] = types.ModuleType('llama2_pl.data'); "
        "data.__path__ = [llama2_pl.__path__[0] + '/data']; "
        "from llama2_pl.data.default import write, write_default_data; write.PACKAGE_SOURCES.clear(); "
        "write_default_data(sys.argv[1], seed=3, scale=0.02)"
    )
    other = str(1 + int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")))
    environment = {**os.environ, "PYTHONHASHSEED": other}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    without_package_text(monkeypatch)
    write_default_data(str(tmp_path / "here"), seed=3, scale=0.02)
    here = digest(tmp_path / "here")
    assert len(here) > 10 and here == digest(tmp_path / "there")


def test_another_seed_is_another_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_package_text(monkeypatch)
    for seed in (0, 1):
        write_default_data(str(tmp_path / str(seed)), seed=seed, scale=0.01)
    assert not {
        name for name, value in digest(tmp_path / "0").items() if digest(tmp_path / "1")[name] == value
    } - {"README.md", "gatt/constraints.jsonl"}


def test_a_finished_folder_is_left_alone_and_an_unfinished_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_package_text(monkeypatch)
    write_default_data(str(tmp_path), seed=0, scale=0.01)
    (tmp_path / "sft/val.jsonl").write_text("mine")
    write_default_data(str(tmp_path), seed=0, scale=0.01)
    assert (tmp_path / "sft/val.jsonl").read_text() == "mine"
    write_default_data(str(tmp_path), seed=1, scale=0.01)
    assert (tmp_path / "sft/val.jsonl").read_text() != "mine"


def test_a_python_without_help_topics_gets_more_of_the_world_and_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # import raises ImportError
    assert list(stdlib_text.prose_documents()) == []
    monkeypatch.setattr(write, "PACKAGE_SOURCES", {"prose": stdlib_text.prose_documents})
    write_default_data(str(tmp_path), scale=0.01)
    assert "corpus/prose.jsonl**: this Python carries no such text" in (tmp_path / "README.md").read_text()
    assert rows(tmp_path / "corpus/prose.jsonl") != rows(tmp_path / "corpus/world.jsonl")


def test_a_python_without_sources_gives_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert list(stdlib_text.code_documents()) == [] == list(stdlib_text.docstring_documents())


def test_docstrings_are_taken_in_the_order_of_the_source() -> None:
    source = '"One."\nif 1:\n    def f():\n        "Two."\n        class C:\n            "Three."\ndef g(): "Four."\n'
    assert stdlib_text.docstrings(source) == "One.\n\nTwo.\n\nThree.\n\nFour."


def test_every_file_is_read_by_its_reader(written: Path) -> None:
    for name in ("sft/train", "sft/val", "gatt/dialogues", "safety_scaling/helpful", "safety_scaling/safety"):
        path = written / f"{name}.jsonl"
        dialogues = list(read_dialogues(path))
        assert len(dialogues) == len(rows(path))
        for dialogue in dialogues:
            validate_roles(dialogue)
            assert dialogue.messages[-1].role == "assistant"
    for kind in ("helpful", "safety"):
        path = written / f"preferences/{kind}_train.jsonl"
        pairs = list(read_preferences(path))
        assert len(pairs) == len(rows(path))
        assert {pair.is_safety for pair in pairs} == {kind == "safety"}
        assert {pair.source for pair in pairs} == {f"world_{kind}"}
    prompts = list(read_prompts(written / "prompts/val.jsonl"))
    assert [prompt.id for prompt in prompts] == [f"val-{n}" for n in range(len(prompts))]
    assert len(read_constraints(written / "gatt/constraints.jsonl")) == 20


def test_no_text_holds_a_control_tag_and_generated_text_is_ascii(written: Path) -> None:
    for path in sorted(written.rglob("*.jsonl")):
        text = path.read_text(encoding="utf-8")
        assert not find_control_tags(text), path
        if path.stem not in {"prose", "code", "docs"}:
            assert text.isascii(), path


def last_user(row: dict) -> str:
    return row["messages"][-1]["content"]


def questions(written: Path, split: str) -> set[str]:
    """Every user message of a split, and the same without what stands before the last question."""
    messages = [m for row in rows(written / f"sft/{split}.jsonl") for m in row["messages"]]
    messages += [m for row in rows(written / f"prompts/{split}.jsonl") for m in row["messages"]]
    for kind in ("helpful", "safety"):
        pairs = rows(written / f"preferences/{kind}_{split}.jsonl")
        messages += [m for row in pairs for m in row["prompt"]["messages"]]
    return {m["content"] for m in messages if m["role"] == "user"}


def test_no_validation_question_is_asked_in_training(written: Path) -> None:
    train, val = questions(written, "train"), questions(written, "val")
    assert len(val) > 100
    # "And Tom?" says nothing without the turn before it
    assert {text for text in train & val if not text.startswith(("And ", "What about "))} == set()


def test_training_asks_about_no_held_out_person(written: Path) -> None:
    held_out = {person.name for person in write.build_world(0).people if person.held_out}
    assert len(held_out) == 16
    turns = {turn for case in rows(written / "gatt/eval.jsonl") for turn in case["user_turns"]}
    train = " ".join(questions(written, "train") | turns)
    assert not held_out & set(train.replace("?", " ").replace(".", " ").replace("'", " ").split())
    told = (written / "corpus/world.jsonl").read_text(encoding="utf-8")
    assert all(f"{name} lives in" in told for name in held_out)


def test_prompts_differ_and_a_fifth_to_a_quarter_are_for_safety(written: Path) -> None:
    for split in ("train", "val"):
        prompts = rows(written / f"prompts/{split}.jsonl")
        texts = [json.dumps(row["messages"]) for row in prompts]
        assert len(set(texts)) == len(texts)
        assert all(row["is_safety"] == (row["task"]["kind"] == "safety") for row in prompts)
        assert all(last_user(row) == row["task"]["question"] for row in prompts)
    safety = sum(row["is_safety"] for row in rows(written / "prompts/train.jsonl"))
    assert 0.18 < safety / 120 < 0.32


def test_ghost_attention_cases_are_checkable_and_mostly_of_trained_words(written: Path) -> None:
    cases = rows(written / "gatt/eval.jsonl")
    known = {c.text: c for c in read_constraints(written / "gatt/constraints.jsonl")}
    assert all(len(case["user_turns"]) == 20 for case in cases)
    assert all(case["held_out"] == (case["instruction"] not in known) for case in cases)
    assert [case["held_out"] for case in cases[:5]] == [False] * 4 + [True]
    trained = (written / "sft/train.jsonl").read_text(encoding="utf-8")
    for case in cases:
        assert (case["check"].split(":")[1] not in trained) == case["held_out"]


def test_an_instruction_that_lasts_stands_only_where_it_is_obeyed_and_no_answer_follows(
    written: Path,
) -> None:
    known = read_constraints(written / "gatt/constraints.jsonl")
    lasting = one_offs = 0
    for row in rows(written / "sft/train.jsonl"):
        texts = [message["content"] for message in row["messages"]]
        asked = [n for n, message in enumerate(row["messages"]) if "Always " in message["content"]]
        for place in asked:
            given = [c for c in known if c.text in texts[place]]
            assert given and all(constraint_kept(c, texts[-1]) for c in given)
            assert place in (len(texts) - 2, len(texts) - 3)  # user, or system of a single turn
        lasting += bool(asked)
        one_offs += any("Just this time" in text for text in texts)
    assert lasting > 40 and one_offs > 20


def test_a_tenth_of_the_data_is_a_tenth_of_the_documented_counts(written: Path) -> None:
    counts = {name: len(rows(written / name)) for name in NAMES if name.endswith("jsonl")}
    assert (counts["sft/train.jsonl"], counts["preferences/helpful_train.jsonl"]) == (300, 600)
    assert counts["preferences/safety_train.jsonl"] == counts["prompts/train.jsonl"] == 120
    characters = sum(len(row["text"]) for row in rows(written / "corpus/world.jsonl"))
    assert 190_000 <= characters < 191_500
    assert sum(len(row["text"]) for row in rows(written / "corpus/code.jsonl")) <= 200_000


def test_validation_answers_of_fine_tuning_are_good() -> None:
    from llama2_pl.data.default import dialogues
    from llama2_pl.data.default.safety import any_task

    rng = write.random.Random(0)
    world = write.build_world(0)
    for number in range(200):
        task = any_task(world, write.HELD_OUT[number % 2], 0.2, rng)
        answer = dialogues.sft_answer(task, write.HELD_OUT[number % 2], rng)
        assert judge(task, answer).utility == pytest.approx(MAXIMUM)
