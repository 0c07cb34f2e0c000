"""Stages run once, resume where they stopped, and run again when something they depend on changes."""

import json

import pytest

from llama2_pl.rlhf.stages import Stage, fingerprint, run_stages


def recipe(tmp_path, command_b="b"):
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    return [
        Stage("a", "first", ("a",), (), (a,)),
        Stage("b", "second", (command_b,), (a,), (b,)),
    ]


class Executor:
    def __init__(self, tmp_path, fail_on=None):
        self.tmp_path, self.fail_on, self.ran = tmp_path, fail_on, []

    def __call__(self, args):
        if args[0] == self.fail_on:
            raise RuntimeError("killed")
        self.ran.append(args[0])
        (self.tmp_path / f"{args[0][0]}.txt").write_text(args[0])


def quiet(_line):
    pass


def test_a_second_run_skips_what_is_done(tmp_path):
    first, second = Executor(tmp_path), Executor(tmp_path)
    run_stages(tmp_path, recipe(tmp_path), first, quiet)
    run_stages(tmp_path, recipe(tmp_path), second, quiet)
    assert first.ran == ["a", "b"] and second.ran == []


def test_a_killed_run_goes_on_at_the_stage_that_was_killed(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(tmp_path, recipe(tmp_path), Executor(tmp_path, fail_on="b"), quiet)
    again = Executor(tmp_path)
    run_stages(tmp_path, recipe(tmp_path), again, quiet)
    assert again.ran == ["b"]


def test_a_changed_command_or_input_or_output_runs_the_stage_again(tmp_path):
    run_stages(tmp_path, recipe(tmp_path), Executor(tmp_path), quiet)
    changed = Executor(tmp_path)
    run_stages(tmp_path, recipe(tmp_path, "b2"), changed, quiet)
    assert changed.ran == ["b2"]
    (tmp_path / "a.txt").write_text("edited by hand")
    edited = Executor(tmp_path)
    run_stages(tmp_path, recipe(tmp_path, "b2"), edited, quiet)
    assert edited.ran == ["a"]  # its output changed; made again it is what b read, so b stands


def test_a_stage_without_its_output_is_an_error_that_names_the_file(tmp_path):
    stages = [Stage("a", "first", ("a",), (), (str(tmp_path / "never.txt"),))]
    with pytest.raises(ValueError, match=r"stage a ended without writing .*never\.txt"):
        run_stages(tmp_path, stages, Executor(tmp_path), quiet)


def test_the_manifest_holds_the_command_as_it_can_be_typed(tmp_path):
    stages = [Stage("a", "first", ("a", "--title", "two words"), (), (str(tmp_path / "a.txt"),))]
    run_stages(tmp_path, stages, Executor(tmp_path), quiet)
    manifest = json.loads((tmp_path / "manifests" / "a.json").read_text())
    assert manifest["shell"] == "llama2-pl a --title 'two words'"


def test_a_folder_fingerprint_sees_content_and_names(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "x").write_text("1")
    before = fingerprint(folder)
    (folder / "x").write_text("2")
    changed = fingerprint(folder)
    (folder / "x").write_text("1")
    (folder / "x").rename(folder / "y")
    assert len({before, changed, fingerprint(folder)}) == 3
