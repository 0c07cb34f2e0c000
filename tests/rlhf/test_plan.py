"""What the stages of a run are, by its options; nothing is run here."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import yaml

from llama2_pl.checkpoints.hardware import Hardware
from llama2_pl.commands.registry import TOOLS, find_tool, load, parse_tool
from llama2_pl.rlhf.driver import (
    check,
    config_texts,
    filled,
    require_files,
    rlhf,
    without_ratings_to_come,
)
from llama2_pl.rlhf.plan import plan
from llama2_pl.rlhf.recipe import WITH_HARDWARE, on_hardware
from llama2_pl.rlhf.runner import write_texts
from llama2_pl.rlhf.settings import Every, Files, Loop, Ratings, Sampling
from llama2_pl.rlhf.stages import Stage

CONFIGS = Path(__file__).parents[2] / "configs"
PLAIN = ("reward_helpfulness", "reward_safety", "best_of_k", "fine_tune", "ppo")


def loop_of(**options) -> Loop:
    files = Files("chat.ckpt", "base.ckpt", "t.model", "train.jsonl", "val.jsonl", ["h.jsonl"], ["s.jsonl"])
    settings = {
        "out": Path("run"),
        "files": files,
        "configs": {name: [] for name in PLAIN},
        "options": {},
        "ratings": Ratings(),
        "sampling": Sampling(),
        "every": Every(),
        "versions": 5,
        "ppo_from": 5,
        "fine_tune_from": "base",
        "teacher": None,
        "answers_per_prompt": 1,
        "seed": 0,
    }
    return Loop(**{**settings, **options})


def stage(stages: list[Stage], name: str) -> Stage:
    return next(stage for stage in stages if stage.name == name)


def test_the_first_four_versions_have_no_ppo_and_the_fifth_has_it_on_top_of_fine_tuning() -> None:
    """Llama 2 §3.2.3."""
    stages = plan(loop_of())
    assert [s.name for s in stages if s.name.endswith("/ppo")] == ["v5/ppo"]
    assert "run/v5/fine_tune/checkpoints" in stage(stages, "v5/ppo").inputs
    candidates = '--candidates=["run/v5/fine_tune/checkpoints", "run/v5/ppo/best.ckpt"]'
    assert candidates in stage(stages, "v5/choice").command


def test_the_paper_s_pool_is_the_previous_samples_until_version_3_and_all_after() -> None:
    stages = plan(loop_of())
    taken = [next(w for w in stage(stages, f"v{v}/pool").command if "--take" in w) for v in range(1, 6)]
    assert taken == ["--take=previous"] * 3 + ["--take=all"] * 2
    everywhere = plan(loop_of(sampling=Sampling(pool="all")))
    assert "--take=all" in stage(everywhere, "v1/pool").command
    assert "--earlier=run/v2/pool" in stage(stages, "v3/pool").command


def test_each_version_is_fine_tuned_from_the_base_model_or_from_the_one_before() -> None:
    base, previous = (plan(loop_of(fine_tune_from=way)) for way in ("base", "previous"))
    for version, before in ((1, "chat.ckpt"), (3, "run/v2/choice/policy.ckpt")):
        name = f"v{version}/fine_tune"
        assert "base.ckpt" in stage(base, name).inputs and before not in stage(base, name).inputs
        assert before in stage(previous, name).inputs and "base.ckpt" not in stage(previous, name).inputs


def test_more_versions_leave_the_stages_of_the_earlier_ones_as_they_are() -> None:
    two, three = (plan(loop_of(versions=n)) for n in (2, 3))
    assert [s for s in two if not s.derived] == [s for s in three if not s.derived][: len(two) - 2]
    assert {s.name for s in two if s.derived} == {"compare", "report"}


def test_each_stage_reads_what_an_earlier_one_makes_or_what_was_given() -> None:
    made = ["run/v1/configs", "run/v2/configs", "run/configs"]
    given = {"chat.ckpt", "base.ckpt", "t.model", "train.jsonl", "val.jsonl", "h.jsonl", "s.jsonl"}
    for each in plan(loop_of(versions=2, ppo_from=2)):
        for path in each.inputs:
            assert path in given or any(Path(path).is_relative_to(out) for out in made), (each.name, path)
        made += each.outputs


def test_each_stage_that_is_given_the_tokenizer_reads_it() -> None:
    for each in plan(loop_of(versions=2, ppo_from=2)):
        if "--tokenizer=t.model" in each.command:
            assert "t.model" in each.inputs, each.name


def test_an_option_of_a_stage_stands_behind_its_configs() -> None:
    options = {"ppo": {"model.beta": 0.2, "trainer.enable_progress_bar": False, "model.margin": "none"}}
    command = stage(plan(loop_of(options=options)), "v5/ppo").command
    assert command[:2] == ("fit", "--config=run/v5/configs/ppo.yaml")
    tail = (
        "--model.beta=0.2",
        "--trainer.enable_progress_bar=false",
        "--model.margin=none",
        "--ckpt_path=last",
    )
    assert command[2:] == tail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"versions": 0}, r"versions is 0"),
        ({"configs": {}}, r"configs: no config files for best_of_k"),
        ({"options": {"sft": {"model.lr": 1.0}}}, r"no stage 'sft'; the stages are reward_helpfulness, "),
    ],
)
def test_mistakes_are_told_before_anything_runs(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(loop_of(**options))


def test_stages_that_are_not_run_need_no_configs() -> None:
    check(loop_of(configs={name: [] for name in PLAIN[:-1]}, versions=4))
    check(loop_of(configs={"fine_tune": []}, versions=4, teacher=Path("big")))


def test_a_run_waits_for_the_ratings_of_people_and_says_what_to_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = loop_of(ratings=Ratings(folder=str(tmp_path)))
    stages = plan(loop)
    assert not [s for s in stages if s.name.endswith("/ratings")]
    assert [s.name for s in without_ratings_to_come(loop, stages)] == ["held_out"]
    assert (
        f"v1 waits for ratings of answers of chat.ckpt: put them in {tmp_path}/v1/" in capsys.readouterr().out
    )
    (tmp_path / "v1").mkdir()
    for kind in ("helpful", "safety"):
        (tmp_path / f"v1/{kind}_train.jsonl").touch()
    assert without_ratings_to_come(loop, stages)[-1].name == "v1/choice"
    assert "run/v1/choice/policy.ckpt and chat.ckpt" in capsys.readouterr().out
    assert f"{tmp_path}/v1/helpful_train.jsonl" in stage(stages, "v2/reward_helpfulness").inputs


def test_open_source_pairs_are_the_others_of_one_reward_model_and_helpfulness_of_the_other(
    tmp_path: Path,
) -> None:
    """Llama 2 §3.2.2: 'equal parts … from Meta Safety and from the open-source datasets'; 10 % helpfulness of both."""
    loop = loop_of(out=tmp_path, versions=1, ppo_from=2)
    Path(tmp_path / "train.jsonl").write_text('{"prompt": "Is it?"}\n')
    files = replace(loop.files, open_source=["o.jsonl"], prompts=str(tmp_path / "train.jsonl"))
    loop = replace(loop, files=files)
    write_texts(config_texts(loop))
    mixes = {}
    for kind in ("helpfulness", "safety"):
        mix = yaml.safe_load((tmp_path / f"v1/configs/reward_{kind}.yaml").read_text())["data"]["init_args"]
        mixes[kind] = (mix["helpful"], mix["safety"])
        assert "o.jsonl" in stage(plan(loop), f"v1/reward_{kind}").inputs
    helpful, safety = (f"{tmp_path}/v1/ratings/{side}_train.jsonl" for side in ("helpful", "safety"))
    assert mixes["helpfulness"] == (["h.jsonl", helpful], ["s.jsonl", safety, "o.jsonl"])
    assert mixes["safety"] == (["h.jsonl", helpful, "o.jsonl"], ["s.jsonl", safety])


def test_a_file_that_is_not_there_is_named_with_its_option_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("chat.ckpt", "base.ckpt", "t.model", "train.jsonl", "val.jsonl", "h.jsonl", "s.jsonl"):
        Path(name).touch()
    loop = loop_of(files=replace(loop_of().files, open_source=["o.jsonl"]))
    with pytest.raises(ValueError, match=r"files\.open_source: o\.jsonl: no such file"):
        require_files(loop.files, plan(loop))
    require_files(loop.files, plan(loop)[:1])  # what no stage of the run reads is not missed
    Path("o.jsonl").touch()
    require_files(loop.files, plan(loop))


def test_a_last_version_with_ppo_is_compared_without_it_too() -> None:
    """Llama 2 fig. 11: RLHF-V5 without and with PPO."""
    steps = {
        "v5 without PPO": "run/v5/fine_tune/checkpoints/last.ckpt",
        "v5 with PPO": "run/v5/ppo/best.ckpt",
    }
    compare = stage(plan(loop_of()), "compare")
    assert f"--steps={json.dumps(steps)}" in compare.command and "run/v5/ppo/best.ckpt" in compare.inputs
    assert "--steps" not in stage(plan(loop_of(versions=4)), "compare").shell


def test_start_is_filled_in_and_missed_where_it_is_not_given() -> None:
    files = replace(loop_of().files, policy="$START/sft/last.ckpt", helpful=["$START/a.jsonl", "b.jsonl"])
    found = filled(files, "runs/demo")
    assert found.policy == "runs/demo/sft/last.ckpt" and found.helpful == ["runs/demo/a.jsonl", "b.jsonl"]
    with pytest.raises(ValueError, match=r"\$START/sft/last\.ckpt: \$START is not set; give --start\.folder"):
        filled(files, None)


def packaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> tuple[Loop, list[Stage]]:
    """What a packaged config plans, with its configs written; the start is an empty folder with one prompt."""
    found: list = []
    monkeypatch.setattr(
        "llama2_pl.rlhf.driver.run_stages",
        lambda run, stages, *_, configs, **__: (write_texts(configs), found.append(stages)),
    )
    monkeypatch.setattr("llama2_pl.rlhf.driver.recipe", lambda *_, **__: None)
    monkeypatch.setattr(
        "llama2_pl.rlhf.driver.config_texts", lambda loop: found.append(loop) or config_texts(loop)
    )
    monkeypatch.setattr("llama2_pl.rlhf.driver.require_files", lambda files, stages: None)
    (tmp_path / "data/prompts").mkdir(parents=True)
    row = {"prompt": "Is it?", "task": {"kind": "safety", "answers": ["No."]}}
    (tmp_path / "data/prompts/train.jsonl").write_text(json.dumps(row) + "\n")
    words = [f"--config={CONFIGS}/rlhf/{name}.yaml", f"--out={tmp_path}/run", f"--start.folder={tmp_path}"]
    rlhf(**parse_tool("rlhf", [*words, *more]))
    return found[0], found[1]


@pytest.mark.parametrize("name", ["small", "paper"])
def test_every_stage_of_a_packaged_config_parses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llama2_pl.cli import main

    loop, stages = packaged(name, tmp_path, monkeypatch)
    assert len([s for s in stages if s.name.startswith("v5/")]) == 10 and loop.sampling.take(4) == "all"
    sweep = tmp_path / "run/v5/temperature/config.yaml"
    sweep.parent.mkdir(parents=True)
    sweep.write_text(json.dumps({"model": {"init_args": {"temperatures": [0.9]}}}))
    for each in PLAIN:
        command = [word for word in stage(stages, f"v5/{each}").command if word != "--ckpt_path=last"]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*command, "--print_config"])
        assert stop.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        text = json.dumps(config)
        # nothing of the stage configs' own paths is left
        assert '"runs/' not in text and str(tmp_path / "run/v5" / each) in text
        if each == "best_of_k":
            assert config["model"]["init_args"]["temperatures"] == [0.9]
    assert config["trainer"]["callbacks"][-1]["init_args"]["gold"]["class_path"].endswith("OracleReward")


def test_hardware_goes_to_every_command_that_is_no_training_and_by_default_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--hardware.device=cpu", "--hardware.precision=bf16-true")
    _, stages = packaged("small", tmp_path, monkeypatch, *given)
    own = {s.name.split("/")[-1]: [w for w in s.command if w.startswith("--hardware")] for s in stages}
    without = {*PLAIN, "held_out", "report"}
    assert own == {name: [] if name in without else [*given] for name in own}
    for s in stages:
        if found := find_tool([*s.command]):
            parse_tool(*found)
    assert not any("hardware" in word for s in plan(loop_of()) for word in s.command)


def test_each_tool_that_takes_hardware_is_given_it_in_a_recipe() -> None:
    taking = {name for name, tool in TOOLS.items() if "hardware" in signature(load(tool)).parameters}
    assert taking - {"chat", "demo", "recipe"} == WITH_HARDWARE
    stages = [
        Stage("x", "", (*words.split(), "--out", "gatt"), (), ()) for words in ("gatt", "gatt cases", "fit")
    ]
    stages = on_hardware(stages, Hardware("cuda:1"))
    assert [s.command[-1] for s in stages] == ["--hardware.device=cuda:1", "gatt", "gatt"]


def test_people_who_rate_need_no_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = packaged("small", tmp_path, monkeypatch)
    Path(loop.files.prompts).write_text('{"prompt": "Is it?"}\n')
    write_texts(config_texts(loop))
    doctor = yaml.safe_load((tmp_path / "run/v5/configs/ppo.yaml").read_text())["trainer"]["callbacks"][-1]
    assert doctor["init_args"]["gold"] is None
