"""A recipe file: variables filled in, stages run and skipped, mistakes told with file and way out."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from llama2_pl.cli import main
from llama2_pl.commands.registry import find_tool, parse_tool
from llama2_pl.data.default import write
from llama2_pl.rlhf.recipe import (
    configs_folder,
    filled_configs,
    read_recipe,
    recipe,
    variables_of,
)
from llama2_pl.rlhf.runner import write_texts

DATA = {"name": "data", "command": "data default --out $RUN/data --scale 0.02", "outputs": ["$RUN/data"]}
AGAIN = {
    "name": "again",
    "about": "another world",
    "command": "data default --out '$RUN/with space' --scale 0.02 --seed 1",
    "inputs": ["$RUN/data", "$CONFIGS/note.yaml"],
    "outputs": ["$RUN/with space"],
    "share": 3,
}


@pytest.fixture(autouse=True)
def only_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own text is left out of the corpus: it takes longer to write than all the rest."""
    monkeypatch.setattr(write, "PACKAGE_SOURCES", {})


def recipe_file(folder: Path, *stages: dict) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "note.yaml").write_text("stdlib: $STDLIB\nrun: $RUN\nseed: $SEED\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": list(stages)}), encoding="utf-8")
    return str(path)


def test_stages_run_in_order_with_their_variables_filled_in(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe(recipe_file(tmp_path / "mine", DATA, AGAIN), str(run), seed=3)
    assert (run / "data/sft/train.jsonl").exists() and (run / "with space/sft/train.jsonl").exists()
    manifest = json.loads((run / "manifests/again.json").read_text())
    assert manifest["command"] == [
        *("data", "default", "--out", f"{run}/with space"),
        *("--scale", "0.02", "--seed", "1"),
    ]
    assert set(manifest["inputs"]) == {f"{run}/data", f"{run}/configs/note.yaml"}
    note = yaml.safe_load((run / "configs/note.yaml").read_text())
    assert note["seed"] == 3 and note["run"] == str(run) and (Path(note["stdlib"]) / "json").is_dir()


def test_a_second_run_skips_until_a_config_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = recipe_file(tmp_path / "mine", DATA, AGAIN), str(tmp_path / "run")
    recipe(path, run)
    capsys.readouterr()
    recipe(path, run)
    assert capsys.readouterr().out.count("done before, skipped") == 2
    (tmp_path / "mine/note.yaml").write_text("other: 1\n")
    recipe(path, run)
    assert "data: done before, skipped" in (said := capsys.readouterr().out)
    assert "again: another world" in said


def test_until_ends_after_that_stage_and_an_unknown_one_lists_the_stages(tmp_path: Path) -> None:
    path, run = recipe_file(tmp_path / "mine", DATA, AGAIN), tmp_path / "run"
    recipe(path, str(run), until="data")
    assert (run / "data").exists() and not (run / "with space").exists()
    with pytest.raises(ValueError, match=r"--until ppo: no such stage; the recipe has data, again"):
        recipe(path, str(run), until="ppo")


def test_fresh_removes_what_an_earlier_run_left(tmp_path: Path) -> None:
    path, run = recipe_file(tmp_path / "mine", DATA), tmp_path / "run"
    run.mkdir()
    (run / "old.txt").write_text("old")
    recipe(path, str(run))
    assert (run / "old.txt").exists()
    recipe(path, str(run), fresh=True)
    assert not (run / "old.txt").exists() and (run / "data").exists()


def test_fresh_removes_nothing_where_the_recipe_has_a_mistake(tmp_path: Path) -> None:
    path, run = recipe_file(tmp_path / "mine", DATA), tmp_path / "run"
    run.mkdir()
    (run / "old.txt").write_text("old")
    with pytest.raises(ValueError, match=r"--until typo: no such stage"):
        recipe(path, str(run), fresh=True, until="typo")
    (tmp_path / "mine/note.yaml").write_text("$DATA")
    with pytest.raises(ValueError, match=r"note\.yaml: \$DATA is not set"):
        recipe(path, str(run), fresh=True)
    assert [left.name for left in run.iterdir()] == ["old.txt"]


def test_the_working_directory_can_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = recipe_file(tmp_path / "mine", DATA), tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(run)
    (run / "old.txt").write_text("old")
    recipe(path, ".", fresh=True)
    assert (run / "data").exists() and not (run / "old.txt").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([DATA, {**AGAIN, "input": []}], r"recipe\.yaml: stage 2: unknown key 'input'; a stage has about, "),
        ([{"name": "data", "outputs": []}], r"recipe\.yaml: stage 1: missing key 'command'"),
        ([], r"recipe\.yaml: no 'stages'"),
        ([{**DATA, "inputs": ["$DATA/pairs.jsonl"]}], r"recipe\.yaml: \$DATA is not set; it needs --data"),
        ([{**DATA, "outputs": ["$RUN"]}], r"stage data: its output \S+run holds \S+manifests"),
    ],
)
def test_a_mistake_in_the_recipe_is_told_before_anything_runs(
    tmp_path: Path, stages: list[dict], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(recipe_file(tmp_path / "mine", *stages), str(tmp_path / "run"))
    assert not (tmp_path / "run/data").exists()


def test_data_stands_for_the_folder_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    path = recipe_file(tmp_path / "mine", {**DATA, "inputs": ["$DATA/pairs.jsonl"]})
    recipe(path, str(tmp_path / "run"), data=str(tmp_path))
    manifest = json.loads((tmp_path / "run/manifests/data.json").read_text())
    assert list(manifest["inputs"]) == [f"{tmp_path}/pairs.jsonl"]


def test_extra_options_are_added_to_fit_and_predict_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("llama2_pl.cli.main", ran.append)
    path = recipe_file(
        tmp_path / "mine",
        *(
            {"name": name, "command": f"{name} --x", "outputs": ["$CONFIGS"]}
            for name in ("fit", "predict", "report")
        ),
    )
    recipe(path, str(tmp_path / "run"), extra=["--trainer.max_steps=4"])
    assert ran == [
        ["fit", "--x", "--trainer.max_steps=4"],
        ["predict", "--x", "--trainer.max_steps=4"],
        ["report", "--x"],
    ]


def test_a_recipe_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: no such recipe; .* demo, real, gatt, safety, study"):
        recipe(str(tmp_path / "none.yaml"), str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["demo", "real", "gatt", "safety"])
def test_each_stage_of_a_packaged_recipe_reads_what_an_earlier_one_wrote(name: str) -> None:
    variables = {"RUN": "/r", "CONFIGS": "/r/configs", "STDLIB": "/lib", "DATA": "/d", "SEED": "1"}
    made: list[str] = []
    for stage in read_recipe(configs_folder(name) / "recipe.yaml", variables):
        for path in stage.inputs:
            if path.startswith("/r/") and not path.startswith("/r/configs/"):
                assert any(
                    path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in made
                )
        made += stage.outputs
    assert len(made) > 4


@pytest.mark.parametrize("name", ["demo", "real", "gatt", "safety"])
def test_each_file_that_a_packaged_stage_or_its_config_names_is_an_input(name: str) -> None:
    variables = {"RUN": "/r", "CONFIGS": "/r/configs", "STDLIB": "/lib", "DATA": "/d", "SEED": "1"}
    configs = filled_configs(configs_folder(name), variables, Path("/r/configs"))
    for stage in read_recipe(configs_folder(name) / "recipe.yaml", variables)[
        :-1
    ]:  # the report reads the run
        own = [configs[Path(word)] for word in stage.command if word.startswith("/r/configs/")]
        named = re.findall(r"/[rd]/[^\s,\]}]+", " ".join([*stage.command, *own]))
        allowed = [*stage.inputs, *stage.outputs, f"/r/{stage.name}", "/r/cache"]
        if (
            stage.command[0] == "fit" and "--out" in stage.command
        ):  # moves the run from where its config has it
            allowed += [yaml.safe_load(text)["trainer"]["default_root_dir"] for text in own]
        assert named and [p for p in named if not any(map(Path(p).is_relative_to, allowed))] == [], stage.name


@pytest.mark.parametrize("name", ["demo", "real", "gatt", "safety"])
def test_each_tool_of_a_packaged_recipe_has_the_options_that_its_stage_and_config_give(
    name: str, tmp_path: Path
) -> None:
    variables = variables_of(tmp_path, str(tmp_path / "data"))
    write_texts(filled_configs(configs_folder(name), variables, tmp_path / "configs"))
    for stage in read_recipe(configs_folder(name) / "recipe.yaml", variables):
        if found := find_tool(list(stage.command)):
            assert parse_tool(*found)


@pytest.mark.parametrize("name", ["demo", "real", "gatt", "safety"])
def test_each_training_of_a_packaged_recipe_parses(name: str, tmp_path: Path) -> None:
    variables = variables_of(tmp_path, str(tmp_path / "data"))
    write_texts(filled_configs(configs_folder(name), variables, tmp_path / "configs"))
    for stage in read_recipe(configs_folder(name) / "recipe.yaml", variables):
        if stage.command[0] in {"fit", "predict"}:
            words = [word for word in stage.command if word not in {"--ckpt_path", "last"}]
            with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
                main([*words, "--print_config"])
            assert stop.value.code == 0, stage.name


def test_a_second_run_of_the_packaged_study_asks_every_study_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands read the demo's folder and configs/rlhf, and skip what is done themselves."""
    monkeypatch.chdir(tmp_path)
    for path in ("runs/demo/sft/last.ckpt", "runs/demo/tokenizer/tokenizer.model"):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
    ran = []

    def execute(args: list[str]) -> None:
        out = Path(args[args.index("--out") + 1])
        out.mkdir(exist_ok=True)
        for name in ("study.json", "study.md", "results.json", "report.html"):
            (out / name).touch()
        ran.append(out.name)

    monkeypatch.setattr("llama2_pl.cli.main", execute)
    for _ in range(2):
        recipe("study", "runs/studies")
    assert ran == ["reward_models", "versions", "ghost_attention"] * 2


def test_the_packaged_study_names_options_that_its_commands_have(tmp_path: Path) -> None:
    variables = {"RUN": "/r", "CONFIGS": str(configs_folder("study")), "STDLIB": "", "SEED": "1"}
    seeds = {}
    for stage in read_recipe(configs_folder("study") / "recipe.yaml", variables):
        found = find_tool(list(stage.command))
        assert found is not None
        seeds[stage.name] = parse_tool(*found).get("seeds")
    assert list(map(len, filter(None, seeds.values()))) == [8, 3, 3] and set(seeds) == {
        "reward_models",
        "versions",
        "ghost_attention",
    }
