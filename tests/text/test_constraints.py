"""Checks of instructions, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama2_pl.text.constraints import Constraint, checkable, constraint_kept, constraint_of, read_constraints


@pytest.mark.parametrize(
    ("check", "answer", "kept"),
    [
        ("capitals", "THE STONE IS RED. 7!", True),
        ("capitals", "THE STONE is RED.", False),
        ("capitals", "7 + 3", False),
        ("capitals", "", False),
        ("starts_with:Arrr", "Arrr! The stone is red.", True),
        ("starts_with:Arrr", '"ARRR", said he', True),
        ("starts_with:Arrr", "Arrrgh! no", False),
        ("starts_with:Arrr", "The stone, Arrr", False),
        ("ends_with:ahoy", "The stone is red, Ahoy!", True),
        ("ends_with:ahoy", "ahoy the stone", False),
        ("ends_with:ahoy", "", False),
        ("ends_with:good bye", "It is red. Good bye.", True),
        ("ends_with:good bye", "bye", False),
        ("contains:red", "a Red stone", True),
        ("contains:red", "I am bored", False),
        ("contains:red stone", "the red, stone", True),
        ("contains:don't", "I don't know", True),
        ("contains:größe", "Die GRÖSSE zählt", True),
    ],
)
def test_a_check_tells_whether_an_answer_keeps_it(check: str, answer: str, kept: bool) -> None:
    assert constraint_kept(Constraint("x", "x", check), answer) is kept


def test_a_constraint_without_a_check_cannot_be_told() -> None:
    figure = Constraint("Act as Napoleon.", "Figure: Napoleon.")
    with pytest.raises(ValueError, match="Act as Napoleon"):
        constraint_kept(figure, "Bonjour")
    assert checkable([figure, Constraint("x", "x", "capitals")]) == [Constraint("x", "x", "capitals")]


@pytest.mark.parametrize(
    "check", ["capital", "capitals:x", "ends_with", "ends_with:", "ends_with:!?", "rhymes:x"]
)
def test_a_check_that_does_not_exist_is_refused(check: str) -> None:
    with pytest.raises(ValueError, match="ends_with:WORD"):
        constraint_of({"text": "x", "check": check})


def test_constraints_that_exclude_each_other_share_a_group() -> None:
    pirate, cat = (Constraint("x", "x", f"starts_with:{word}") for word in ("Arrr", "Meow"))
    assert pirate.group == cat.group != Constraint("x", "x", "capitals").group
    assert Constraint("a", "a", kind="figure").group == Constraint("b", "b", kind="figure").group
    assert Constraint("a", "a").group != Constraint("b", "b").group


@pytest.mark.parametrize("as_lines", [True, False], ids=["json lines", "json array"])
def test_constraints_are_read_from_lines_and_arrays(tmp_path: Path, as_lines: bool) -> None:
    rows = [
        {"text": "Shout.", "short": "Loud.", "check": "capitals"},
        {"text": "Act as a cat.", "kind": "figure"},
    ]
    path = tmp_path / "constraints.json"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n" if as_lines else json.dumps(rows, indent=1))
    expected = [
        Constraint("Shout.", "Loud.", "capitals"),
        Constraint("Act as a cat.", "Act as a cat.", None, "figure"),
    ]
    assert read_constraints(path) == read_constraints(str(path)) == read_constraints(rows) == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{half", "not JSON"),
        ('"text"', "not an object"),
        ('{"short": "x"}', "'text' is None"),
        ('{"text": " "}', "'text' is empty"),
        ('{"text": "x", "check": 3}', "'check' is 3"),
        ('{"text": "x", "chek": "capitals"}', "unknown key 'chek'"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "constraints.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"constraints.jsonl:2: .*{why}"):
        read_constraints(path)
