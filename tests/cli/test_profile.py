"""`llama2-pl profile` on the tiny backbone."""

from __future__ import annotations

import gzip
import json

import pytest

from llama2_pl.cli import main
from llama2_pl.commands import profile


def test_the_table_gives_each_row_its_share_of_a_step():
    text = profile.table("sft", 50.0, [("backward", 1, 30.0)], [("aten::mm", 8, 20.0), ("aten::add", 2, 5.0)])
    assert text.splitlines() == [
        "# sft",
        "",
        "50.0 ms a step.",
        "",
        "| part | calls | ms | share |",
        "|---|---:|---:|---:|",
        "| backward | 1 | 30.00 | 60.0% |",
        "",
        "| operation, without those that it calls | calls | ms | share |",
        "|---|---:|---:|---:|",
        "| aten::mm | 8 | 20.00 | 40.0% |",
        "| aten::add | 2 | 5.00 | 10.0% |",
    ]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "sampling"])
def test_a_stage_is_traced_step_by_step(stage, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(profile, "table", lambda *given: shown.append(given) or "text")
    options = ["--backbone", "tiny", "--rows", "2", "--length", "4", "--steps", "2", "--out", str(tmp_path)]
    main(["profile", "--stage", stage, *options])
    ((_, step, parts, operations),) = shown
    assert [(name, calls) for name, calls, _ in parts] == [(name, 1) for name in profile.PARTS[stage]]
    assert 0 < sum(ms for *_, ms in parts) <= step or not parts
    assert 0 < sum(ms for *_, ms in operations) <= step
    assert [ms for *_, ms in operations] == sorted((ms for *_, ms in operations), reverse=True)
    events = json.loads(gzip.decompress((tmp_path / f"{stage}.json.gz").read_bytes()))["traceEvents"]
    traced = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert all(traced.count(name) == 2 for name in profile.PARTS[stage])
    assert any(event["name"] in {"aten::mm", "aten::addmm", "aten::linear"} for event in events)
    assert (tmp_path / f"{stage}.md").read_text() == "text"


@pytest.mark.parametrize("option, message", [("--length=4000", "reads at most"), ("--rows=0", "--rows 0")])
def test_sizes_that_cannot_be_are_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main(["profile", "--stage", "sft", "--backbone", "tiny", "--out", str(tmp_path), option])
