"""Rows in the wild: each door for JSON lines reports file and line; strict stops, lenient skips and counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llama2_pl.data.readers import (
    Limits,
    ReadReport,
    read_dialogues,
    read_documents,
    read_preferences,
    read_prompts,
)
from llama2_pl.rlhf.gatt import read_cases

ASKED = [{"role": "user", "content": "q"}]


class Door(NamedTuple):
    """A reader, a good row of it, and a key that the row must have."""

    read: Callable
    row: dict[str, Any]
    key: str


READERS = {
    "documents": Door(read_documents, {"text": "t"}, "text"),
    "dialogues": Door(
        read_dialogues, {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "messages"
    ),
    "preferences": Door(read_preferences, {"prompt": "q", "chosen": "a", "rejected": "b"}, "rejected"),
    "prompts": Door(read_prompts, {"messages": ASKED}, "messages"),
}
OURS = {
    "tasks": Door(
        partial(read_prompts, tasks="required"),
        {"messages": ASKED, "task": {"kind": "safety", "answers": ["No."]}},
        "task",
    ),
    "cases": Door(read_cases, {"instruction": "i", "user_turns": ["u"], "check": "ends:x"}, "user_turns"),
}


def faults(row: dict[str, Any], key: str) -> dict[str, tuple[bytes, str]]:
    """A broken line of each kind, and what is said of it."""
    good = json.dumps(row)[:-1]
    without = {name: value for name, value in row.items() if name != key}
    return {
        "bad UTF-8": (good.encode() + b', "x": "caf\xe9"}', "0xE9"),
        "NUL": (good.encode() + b', "x": "\0"}', r"NUL"),
        "lone surrogate": (good.encode() + b', "x": "\\ud800"}', r"U\+D800"),
        "empty line": (b"", "the line is empty"),
        "missing key": (json.dumps(without).encode(), key),
        "wrong type": (json.dumps({**row, key: 7}).encode(), f"{key}' is int"),
        "wrong type of the row": (b"[1]", "the row is list"),
        "NaN score": (good.encode() + b', "score": NaN}', "NaN is not a JSON number"),
        "not JSON": (good.encode(), "not JSON"),
    }


FAULTS = list(faults({"a": 1}, "a"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*READERS, *OURS])
def test_every_door_names_file_and_line_of_a_broken_row(name: str, fault: str, tmp_path: Path) -> None:
    door = {**READERS, **OURS}[name]
    bad, message = faults(door.row, door.key)[fault]
    good = json.dumps(door.row).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + b"\n" + bad + b"\n" + good + b"\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{message}"):
        list(door.read(str(path)))
    if name in READERS:
        report = ReadReport()
        rows = door.read(path, strict=False, report=report, limits=Limits(max_skipped_share=0.5))
        assert len(list(rows)) == 2
        assert (report.read, report.malformed) == (2, 1)
        assert report.examples[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize("name", READERS)
def test_byte_order_mark_and_crlf_are_repaired_and_counted(name: str, tmp_path: Path) -> None:
    door = READERS[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(door.row) + "\r\n").encode() * 2)
    report = ReadReport()
    assert len(list(door.read(path, report=report))) == 2
    assert report.repaired == {"byte order mark": 1, "CRLF line end": 2}


def test_a_line_of_50_megabytes_is_passed_over_by_the_usual_limits(tmp_path: Path) -> None:
    good = json.dumps(READERS["documents"].row).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + b'\n{"text": "' + b"x" * 50_000_000 + b'"}\n' + good + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: the line is longer than 16777216 bytes"):
        list(read_documents(path))
    lenient = read_documents(path, strict=False, limits=Limits(max_skipped_share=0.5))
    assert [document.line_or_index for document in lenient] == [1, 3]
