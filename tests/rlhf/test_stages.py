"""Stages run once, resume where they stopped, and run again when something they depend on changes."""

import json
import re

import pytest

from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.runner import make_again, run_stages
from llama2_pl.rlhf.stages import Stage, clear, depending, refuse_wide_outputs


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


def test_a_stage_that_was_begun_again_is_done_no_more_whatever_its_old_manifest_says(tmp_path):
    run_stages(tmp_path, recipe(tmp_path), Executor(tmp_path), quiet)
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(tmp_path, recipe(tmp_path, "b2"), Executor(tmp_path, fail_on="b2"), quiet)
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


def trainer(tmp_path, steps=3):
    """Trains as `fit --ckpt_path last`: a checkpoint that is there is gone on from, and each attempt logs its steps."""

    def execute(args):
        last, metrics = tmp_path / "fit/last.ckpt", tmp_path / "fit/metrics"
        old = json.loads(last.read_text()) if last.exists() else {"lr": args[1], "steps": 0}
        metrics.mkdir(parents=True, exist_ok=True)
        (metrics / f"{len(list(metrics.iterdir()))}.csv").write_text(args[1])
        last.write_text(json.dumps({**old, "steps": steps}))
        (tmp_path / "fit/last.ckpt.sha256").write_text("hash")
        (tmp_path / "fit/carbon.json").write_text(json.dumps({"stages": {}}))
        if steps < 3:
            raise KeyboardInterrupt

    return execute


def fit(tmp_path, lr):
    return [Stage("fit", "train", ("fit", lr), (), (str(tmp_path / "fit/last.ckpt"),))]


def test_a_changed_stage_of_a_recipe_is_made_again_from_its_start_and_says_so(tmp_path):
    """Resumed, the finished checkpoint would train no step and pass for one of the new settings."""
    said = []
    run_stages(tmp_path, fit(tmp_path, "lr=1"), trainer(tmp_path), quiet)
    (tmp_path / "fit/doctor.jsonl").write_text("{}")
    run_stages(tmp_path, fit(tmp_path, "lr=2"), trainer(tmp_path), said.append)
    assert json.loads((tmp_path / "fit/last.ckpt").read_text()) == {"lr": "lr=2", "steps": 3}
    assert [path.read_text() for path in (tmp_path / "fit/metrics").iterdir()] == ["lr=2"]
    assert not (tmp_path / "fit/doctor.jsonl").exists() and (tmp_path / "fit/carbon.json").exists()
    assert said[0] == "[1/1] fit: its command had lr=1 and now has lr=2; made again from its start"


def test_a_begun_stage_of_a_recipe_goes_on_unless_it_changed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, fit(tmp_path, "lr=1"), trainer(tmp_path, steps=1), quiet)
    run_stages(tmp_path, fit(tmp_path, "lr=1"), trainer(tmp_path), quiet)
    assert len(list((tmp_path / "fit/metrics").iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, fit(tmp_path, "lr=2"), trainer(tmp_path, steps=1), quiet)
    run_stages(tmp_path, fit(tmp_path, "lr=3"), trainer(tmp_path), quiet)
    assert json.loads((tmp_path / "fit/last.ckpt").read_text())["lr"] == "lr=3"


@pytest.mark.parametrize(("output", "kept"), [("run", "run/manifests"), ("data", "data/in.txt")])
def test_an_output_that_holds_what_its_stage_reads_or_the_manifests_is_refused(tmp_path, output, kept):
    stage = Stage("a", "first", ("a",), (str(tmp_path / "data/in.txt"),), (str(tmp_path / output),))
    with pytest.raises(ValueError, match=rf"stage a: its output {tmp_path / output} holds {tmp_path / kept}"):
        refuse_wide_outputs(tmp_path / "run", [stage])


def test_a_stage_without_its_output_is_an_error_that_names_the_file(tmp_path):
    stages = [Stage("a", "first", ("a",), (), (str(tmp_path / "never.txt"),))]
    with pytest.raises(ValueError, match=r"stage a ended without writing .*never\.txt"):
        run_stages(tmp_path, stages, Executor(tmp_path), quiet)


def test_the_manifest_holds_the_command_as_it_can_be_typed(tmp_path):
    stages = [Stage("a", "first", ("a", "--title", "two words"), (), (str(tmp_path / "a.txt"),))]
    run_stages(tmp_path, stages, Executor(tmp_path), quiet)
    manifest = json.loads((tmp_path / "manifests" / "a.json").read_text())
    assert manifest["shell"] == "llama2-pl a --title 'two words'"


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


def test_configs_are_written_before_the_first_stage_that_runs_and_not_where_one_is_refused(tmp_path):
    ran, config, folder = [], tmp_path / "configs/c.yaml", tmp_path / "configs"
    stages = [stage._replace(inputs=(*stage.inputs, str(folder))) for stage in folder_recipe(tmp_path)]
    stages[0] = stages[0]._replace(inputs=(str(config),))
    how = {"say": quiet, "refuse": True}
    run_stages(tmp_path, stages, make(tmp_path, ran), **how, configs={config: "x: 1"})
    inputs = [json.loads((tmp_path / f"manifests/{name}.json").read_text())["inputs"] for name in "ab"]
    assert inputs[0][str(config)] == fingerprint(config) and inputs[1][str(folder)] == fingerprint(folder)
    config.write_text("y: 1")  # by hand: what is asked for counts, and nothing is run that would read it
    run_stages(tmp_path, stages, make(tmp_path, ran), **how, configs={config: "x: 1"})
    config.unlink()
    folder.rmdir()
    run_stages(tmp_path, stages, make(tmp_path, ran), **how, configs={config: "x: 1"})
    for at, changed in ((0, config), (1, config)):
        with pytest.raises(ValueError, match=rf"stage {'ab'[at]} .*input {changed} changed"):
            run_stages(tmp_path, stages[at:], make(tmp_path, ran), **how, configs={config: "x: 2"})
    assert not folder.exists() and ran == ["a", "b", "c"]


def test_a_derived_stage_is_made_again_where_others_are_refused(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    stages[2] = stages[2]._replace(derived=True)
    (tmp_path / "c.txt").write_text("changed")
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c", "c"]


def test_a_stage_that_is_to_run_always_is_never_skipped(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    stages[2] = stages[2]._replace(always=True)
    for _ in range(2):
        run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c", "c"]


def test_a_stage_made_again_takes_its_curves_and_what_depends_on_it_along_and_nothing_else(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet)
    (tmp_path / "b.txt.previous").write_text("older")
    (tmp_path / "by_hand.txt").write_text("mine")
    (tmp_path / "b/metrics").mkdir(parents=True)
    for name in ("metrics/metrics.csv", "doctor.jsonl", "carbon.json"):
        (tmp_path / "b" / name).write_text('{"stages": {}}')
    again = depending(stages, "a")
    assert [stage.name for stage in again] == ["a", "b"]
    for stage in again:
        clear(tmp_path, stage)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["b/carbon.json", "by_hand.txt", "c.txt", "manifests/c.json"]
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c", "a", "b"]
    with pytest.raises(ValueError, match=r"--redo d: no such stage; the recipe has a, b, c"):
        depending(stages, "d")


def test_stages_that_have_all_changed_are_made_again_one_after_the_other_as_the_messages_say(tmp_path):
    stages, ran = folder_recipe(tmp_path), []
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    changed = [stage._replace(command=(*stage.command, "--new")) for stage in stages]
    with pytest.raises(ValueError, match="--redo a,"):
        make_again(tmp_path, changed, depending(changed, "c"), {})
    redo = []
    while len(redo) < 5:
        try:
            run_stages(tmp_path, changed, make(tmp_path, ran), quiet, refuse=True)
            break
        except ValueError as refused:
            redo.append(re.search(r"--redo (\w)", str(refused))[1])
            make_again(tmp_path, changed, depending(changed, redo[-1]), {})
    assert redo == ["a", "c"] and ran == ["a", "b", "c", "a", "b", "c"]


def test_what_a_stage_no_longer_reads_is_no_change(tmp_path):
    stages, ran, other = folder_recipe(tmp_path), [], tmp_path / "other"
    other.write_text("1")
    before = [stage._replace(inputs=(*stage.inputs, str(other))) for stage in stages]
    run_stages(tmp_path, before, make(tmp_path, ran), quiet, refuse=True)
    other.write_text("2")
    run_stages(tmp_path, stages, make(tmp_path, ran), quiet, refuse=True)
    assert ran == ["a", "b", "c"]
    with pytest.raises(ValueError, match=rf"stage a .*input {other} changed"):
        run_stages(tmp_path, before, make(tmp_path, ran), quiet, refuse=True)


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
