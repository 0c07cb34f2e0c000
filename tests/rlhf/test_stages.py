"""Stages run once, resume where they stopped, and run again when something they depend on changes."""

import json

import pytest

from llama2_pl.rlhf.stages import Stage, fingerprint, forget, run_stages


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
    counts = [json.loads((tmp_path / f"manifests/{name}.json").read_text())["attempts"] for name in "ab"]
    assert counts == [1, 2]


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


def folder_recipe(tmp_path):
    """`a` makes a folder of two files, `b` reads it, `c` reads nothing of it."""
    a, b, c = (str(tmp_path / name) for name in ("a", "b.txt", "c.txt"))
    return [
        Stage("a", "first", ("a",), (), (a,)),
        Stage("b", "second", ("b",), (a,), (b,)),
        Stage("c", "third", ("c",), (), (c,)),
    ]


def make(tmp_path, ran):
    def execute(args):
        ran.append(args[0])
        if args[0] == "a":
            (tmp_path / "a").mkdir(exist_ok=True)
            for name in ("one", "two"):
                (tmp_path / "a" / name).write_text(name)
        else:
            (tmp_path / f"{args[0]}.txt").write_text(args[0])

    return execute


def test_what_no_longer_matches_is_refused_with_the_file_inside_a_folder(tmp_path):
    ran = []
    run_stages(tmp_path, folder_recipe(tmp_path), make(tmp_path, ran), quiet, refuse=True)
    (tmp_path / "a/two").write_text("changed")
    with pytest.raises(
        ValueError, match=rf"stage a .*output {tmp_path}/a/two changed.*--redo a, or give a fresh"
    ):
        run_stages(tmp_path, folder_recipe(tmp_path), make(tmp_path, ran), quiet, refuse=True)
    (tmp_path / "a/two").unlink()
    with pytest.raises(ValueError, match=rf"output {tmp_path}/a/two is gone"):
        run_stages(tmp_path, folder_recipe(tmp_path), make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c"]


def test_a_derived_stage_is_made_again_where_others_are_refused(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    stages[2] = stages[2]._replace(derived=True)
    (tmp_path / "c.txt").write_text("changed")
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c", "c"]


def test_a_stage_made_again_takes_what_depends_on_it_along_and_nothing_else(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet)
    (tmp_path / "b.txt.previous").write_text("older")
    (tmp_path / "by_hand.txt").write_text("mine")
    assert forget(tmp_path, stages, "a") == ["a", "b"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["by_hand.txt", "c.txt", "manifests"]
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c", "a", "b"]
    with pytest.raises(ValueError, match=r"--redo d: no such stage; the recipe has a, b, c"):
        forget(tmp_path, stages, "d")


def test_a_stage_that_was_begun_with_other_inputs_is_refused_and_the_same_ones_go_on(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages[:1], make(tmp_path, ran), quiet)

    def killed(args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, stages, killed, quiet, refuse=True)
    other = [stages[0], stages[1]._replace(command=("b", "--more"))]
    with pytest.raises(ValueError, match=r"stage b .*its command had less and now has --more"):
        run_stages(tmp_path, other, killed, quiet, refuse=True)
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c"] and not list(tmp_path.rglob("*.started"))


def test_tokens_and_energy_are_read_from_what_the_stage_wrote(tmp_path):
    from llama2_pl.rlhf.ledger import spent

    assert spent(tmp_path) == {"tokens": None, "energy": None}
    for version, rows in enumerate((["10", "", "30"], ["", "25", "55"])):  # killed after 30, went on from 20
        path = tmp_path / f"metrics/version_{version}/metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("step,train/tokens\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows)))
    part = {"hours": 0.5, "kwh": 0.1, "co2e_kg": 0.04, "source": "watts"}
    (tmp_path / "carbon.json").write_text(json.dumps({"stages": {"a": part, "b": part}}))
    energy = {"hours": 1.0, "kwh": 0.2, "co2e_kg": 0.08, "source": "watts"}
    assert spent(tmp_path) == {"tokens": 55, "energy": pytest.approx(energy)}
    (tmp_path / "carbon.json").write_text(json.dumps({"stages": {"a": part, "b": {**part, "kwh": None}}}))
    assert spent(tmp_path)["energy"]["kwh"] is None
    folder = tmp_path / "sampling"
    folder.mkdir()
    rows = [{"samples": [{"ids": [1, 2, 3]}, {"ids": [4]}]}, {"samples": [{"ids": []}]}]
    (folder / "batch-000000.json").write_text(json.dumps({"rows": rows}))
    assert spent(folder)["tokens"] == 4
