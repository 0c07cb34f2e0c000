"""Every sensible composition of configs parses, and the paper's sizes hold the paper's numbers."""

from __future__ import annotations

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama2_pl.cli import main
from llama2_pl.model.config import PRESETS, ModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILY = {
    "pretrain": "pretrain",
    "sft": "sft",
    "gatt": "gatt",
    "rejection_sampling_sft": "sft",
    "safety_distillation_sft": "sft",
    "reward_helpfulness": "reward",
    "reward_safety": "reward",
    "reward_general": "reward",
    "ppo": "ppo",
    # the policy's file knows its size
    "rejection_sampling": None,
    "dpo": None,
}


@functools.cache
def composed(stage: str, size: str | None = None, *trainers: str) -> dict[str, Any]:
    """What `--print_config` prints for a composition."""
    files = [
        f"stage/{stage}",
        *([f"size/{FAMILY[stage]}/{size}"] if size else []),
        *(f"trainer/{t}" for t in trainers),
    ]
    return printed([f"--config={CONFIGS / file}.yaml" for file in files], stage)


def printed(options: list[str], stage: str) -> dict[str, Any]:
    command = "predict" if stage == "rejection_sampling" else "fit"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main([command, *options, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(out.getvalue())


def test_the_table_of_this_file_names_every_stage_and_family() -> None:
    assert {path.stem for path in (CONFIGS / "stage").iterdir()} == set(FAMILY)
    assert {path.name for path in (CONFIGS / "size").iterdir()} == {f for f in FAMILY.values() if f}
    assert {path.stem for path in (CONFIGS / "trainer").iterdir()} == {"cpu", "compile", "ddp", "fsdp2"}


@pytest.mark.parametrize("stage", FAMILY)
def test_every_size_of_a_stage_parses(stage: str) -> None:
    sizes = list(PRESETS) if FAMILY[stage] else [None]
    for size in sizes:
        assert composed(stage, size, "cpu")["trainer"]["accelerator"] == "cpu"


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_every_stage_parses_with_the_trainers_of_gpus(trainer: str) -> None:
    for stage in ("pretrain", "ppo"):
        assert composed(stage, "7B", trainer)["trainer"]["accelerator"] == "gpu"


def test_the_general_reward_model_shares_no_data_and_no_seed_with_those_that_ppo_trains_against() -> None:
    general, others = (
        composed("reward_general", "7B"),
        [composed(f"reward_{k}", "7B") for k in ("helpfulness", "safety")],
    )
    data = general["data"]["init_args"]
    assert data["kind"] == "all" and data["safety"] is None
    for other in others:
        used = other["data"]["init_args"]
        assert data["helpful"] not in (used["helpful"], used["safety"]) and data["seed"] != used["seed"]
        assert general["seed_everything"] != other["seed_everything"]


def test_compiled_blocks_come_after_another_trainer() -> None:
    trainer = composed("pretrain", "tiny", "cpu", "compile")["trainer"]
    assert trainer["accelerator"] == "cpu"
    assert trainer["callbacks"][-1]["class_path"] == "llama2_pl.callbacks.CompiledBlocks"


def test_a_printed_composition_loads_to_itself(tmp_path: Path) -> None:
    config = composed("ppo", "demo", "cpu")
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config))
    assert printed([f"--config={tmp_path / 'whole.yaml'}"], "ppo") == config


def test_the_order_of_stage_and_trainer_does_not_matter() -> None:
    files = [f"--config={CONFIGS / name}.yaml" for name in ("trainer/cpu", "stage/sft", "size/sft/tiny")]
    swapped, usual = printed(files, "sft"), composed("sft", "tiny", "cpu")

    def classes(config: dict[str, Any]) -> set[str]:
        return {callback["class_path"] for callback in config["trainer"].pop("callbacks")}

    usual = {**usual, "trainer": {**usual["trainer"]}}
    assert classes(swapped) == classes(usual) and len(classes({"trainer": {"callbacks": []}})) == 0
    assert swapped == usual


def test_an_option_wins_over_the_configs() -> None:
    files = [f"--config={CONFIGS / name}.yaml" for name in ("stage/pretrain", "size/pretrain/7B")]
    config = printed([*files, "--model.lr=0.5", "--model.backbone.n_layers=3"], "pretrain")
    assert config["model"]["init_args"]["lr"] == 0.5
    assert config["model"]["init_args"]["backbone"]["n_layers"] == 3
    assert config["model"]["init_args"]["backbone"]["dim"] == 4096


def test_a_backbone_can_be_given_as_a_file() -> None:
    backbone = CONFIGS / "backbone" / "tiny.yaml"
    config = printed([f"--config={CONFIGS / 'stage/sft.yaml'}", f"--model.backbone={backbone}"], "sft")
    assert config["model"]["init_args"]["backbone"] == PRESETS["tiny"].to_dict()


def test_the_backbone_files_are_the_presets() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIGS / "backbone").iterdir()}
    assert {name: ModelConfig.of(fields) for name, fields in files.items()} == PRESETS
    demo = yaml.safe_load((CONFIGS / "demo/pretrain.yaml").read_text())
    assert ModelConfig.of(demo["model"]["init_args"]["backbone"]) == PRESETS["demo"]


def test_only_pretraining_names_an_architecture() -> None:
    """What starts from a checkpoint has that of its start."""
    naming = {
        path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml") if "backbone:" in path.read_text()
    }
    sizes = {Path("size/pretrain") / f"{size}.yaml" for size in PRESETS}
    assert naming == {Path("demo/pretrain.yaml"), Path("real/pretrain.yaml"), *sizes}


@pytest.mark.parametrize(
    ("size", "pretrain_lr", "reward_lr", "beta"),
    [
        ("7B", 3e-4, 1e-5, 0.01),
        ("13B", 3e-4, 1e-5, 0.01),
        ("34B", 1.5e-4, 1e-5, 0.005),
        ("70B", 1.5e-4, 5e-6, 0.005),
    ],
)
def test_the_paper_s_sizes_hold_the_paper_s_numbers(
    size: str, pretrain_lr: float, reward_lr: float, beta: float
) -> None:
    """Llama 2 Table 1, §2.2, §3.1, §3.2.2, §3.2.3."""

    def rows(config: dict[str, Any]) -> int:
        return config["data"]["init_args"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]

    pretrain, sft = composed("pretrain", size, "cpu"), composed("sft", size, "cpu")
    assert rows(pretrain) * pretrain["data"]["init_args"]["seq_len"] == 4 * 2**20
    assert pretrain["trainer"]["max_steps"] == pytest.approx(2.0e12 / (4 * 2**20), abs=1)
    assert pretrain["model"]["init_args"]["lr"] == pretrain_lr
    assert (rows(sft), sft["data"]["init_args"]["seq_len"]) == (64, 4096)
    assert (sft["model"]["init_args"]["lr"], sft["data"]["init_args"]["epochs"]) == (2e-5, 2)
    for stage in ("reward_helpfulness", "reward_safety"):
        reward = composed(stage, size, "cpu")
        assert (rows(reward), reward["data"]["init_args"]["epochs"]) == (512, 1)
        assert reward["model"]["init_args"]["lr"] == reward_lr
    ppo = composed("ppo", size, "cpu")
    settings = ppo["model"]["init_args"]
    assert (settings["beta"], settings["lr"], settings["clip"], settings["minibatch_size"]) == (
        beta,
        1e-6,
        0.2,
        64,
    )
    assert ppo["data"]["init_args"]["batch_size"] == 512


def test_every_training_stage_has_the_paper_s_optimizer_and_clipping() -> None:
    """AdamW 0.9, 0.95, 1e-5, weight decay 0.1, clipping 1.0 (§2.2); PPO clips by itself."""
    for stage, family in FAMILY.items():
        if family is None:
            continue
        config = composed(stage, "7B", "cpu")
        settings = config["model"]["init_args"]
        assert (settings["betas"], settings["eps"], settings["weight_decay"]) == ([0.9, 0.95], 1e-5, 0.1), (
            stage
        )
        clip = settings["max_grad_norm"] if stage == "ppo" else config["trainer"]["gradient_clip_val"]
        assert clip == 1.0, stage


def test_no_logger_of_a_config_goes_online() -> None:
    for stage in FAMILY:
        loggers = composed(stage, "tiny" if FAMILY[stage] else None, "cpu")["trainer"]["logger"]
        online = [entry for entry in loggers if entry["init_args"].get("offline") is False]
        assert loggers and online == [], stage
