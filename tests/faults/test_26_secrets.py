"""Case 26: keys and passwords are in no log, no saved config and no file of W&B; W&B stops no training."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import WandbLogger

from benchmarks.chaos import tiny
from llama2_pl.cli import main
from llama2_pl.commands.parsing import refuse_secrets
from llama2_pl.rlhf.recipe import recipe

SECRET = "0123456789abcdefSECRETfedcba9876543210aa"


def test_no_file_and_no_line_of_a_run_holds_a_secret_of_its_environment(tmp_path: Path) -> None:
    """One training of two steps with W&B (offline), CSV logs, saved config, checkpoint and carbon."""
    tiny.write_data(tmp_path / "runs/data")
    tiny.write_configs(tmp_path)
    wandb = {"offline": True, "project": "p", "save_dir": "runs/pretrain"}
    loggers = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs/pretrain"}},
        {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": wandb},
    ]
    (tmp_path / "log.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    names = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
    # not its own W&B settings: WANDB_SERVICE alone, left behind by a run of this process, names another process that
    # would write this run's files
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        **dict.fromkeys(names, SECRET),
        "PYTHONPATH": str(tiny.ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_DIR": str(tmp_path / "wandb"),
        "https_proxy": "http://127.0.0.1:9",
    }
    (tmp_path / "wandb").mkdir()
    stage = tiny.stages()["pretrain"]
    words = [*stage.words, "--config", "log.yaml", "--trainer.max_steps=2"]
    output = ""
    for command in (tiny.tokenizer_command(), words):
        done = subprocess.run(
            [sys.executable, "-m", "llama2_pl", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        output += done.stdout + done.stderr
    assert SECRET not in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for sort in ("run-*.wandb", "config-*.yaml", "metrics.csv", "last.ckpt"):
        assert any(path.match(sort) for path in files), f"{sort} is not among {files}\n{output[-4000:]}"
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "config",
    [
        {"trainer": {"logger": [{"class_path": "x"}, {"init_args": {"settings": {"api_key": SECRET}}}]}},
        {"data": {"init_args": {"hf_token": SECRET}}},
        {"model": {"Password": SECRET}},
        {"data": {"auth_token": [SECRET]}},
        {"model": {"init_from": f"https://me:{SECRET}@host/weights"}},
    ],
)
def test_a_config_that_holds_a_secret_is_refused_without_its_value(config: dict) -> None:
    with pytest.raises(ValueError, match=r"looks like a secret.*in the environment") as refusal:
        refuse_secrets(config)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("config", [{"notes": f"see {SECRET}"}, {"trainer": {"tags": ["a", SECRET]}}])
def test_the_value_of_a_key_in_the_environment_is_refused_under_any_name(
    config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_secrets(config)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(ValueError, match=r"(notes|trainer\.tags\[1\]) looks like a secret") as refusal:
        refuse_secrets(config)
    assert SECRET not in str(refusal.value)


def test_the_working_directory_is_no_secret_and_a_password_called_pwd_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordinary = (
        "PWD",
        "OLDPWD",
        "SSH_AUTH_SOCK",
        "XAUTHORITY",
        "GPG_AGENT_INFO",
        "TOKENIZERS_PARALLELISM",
        "HOME",
    )
    for name in ordinary:
        monkeypatch.setenv(name, "/home/me/models")
    config = {"model": {"init_from": "/home/me/models/sft.ckpt"}}
    refuse_secrets(config)
    monkeypatch.setenv("DB_PWD", "/home/me/models")
    with pytest.raises(ValueError, match="looks like a secret"):
        refuse_secrets(config)


def test_ordinary_options_are_no_secrets() -> None:
    refuse_secrets({"tokenizer": "x", "max_new_tokens": 7, "tokens": "x", "api_key": None, "token": ""})
    refuse_secrets({"data": {"train": ["https://host:8080/a@b.jsonl", "s3://bucket/x:y"]}, "seed": 3})


def test_a_secret_on_the_command_line_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = "lightning.pytorch.loggers.WandbLogger"
    given = {"class_path": logger, "init_args": {"offline": True}, "dict_kwargs": {"api_key": SECRET}}
    words = [f"--trainer.logger={yaml.safe_dump(given, default_flow_style=True, width=10_000).strip()}"]
    with pytest.raises(ValueError, match=r"trainer\.logger.*api_key looks like a secret"):
        main(["fit", "--model=SFTModule", f"--model.backbone={tiny.ROOT}/configs/backbone/tiny.yaml", *words])
    assert list(tmp_path.iterdir()) == []
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "words",
    [
        [f"--trainer.logger.init_args.api_key={SECRET}"],
        ["--trainer.logger.init_args.api_key", SECRET],
        [f"--trainer.logger=[{{class_path: x, dict_kwargs: {{api_key: {SECRET}}}}}]"],
        [f"--data.train=https://me:{SECRET}@host/rows.jsonl"],
    ],
)
def test_a_secret_in_the_options_of_a_recipe_is_refused_before_it_is_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stages: [{name: a, command: fit --config $CONFIGS/a.yaml, outputs: [$RUN/a]}]")
    with pytest.raises(ValueError, match=r"looks like a secret") as refusal:
        recipe(str(path), str(tmp_path / "run"), extra=words)
    assert SECRET not in "".join([str(refusal.value), *capsys.readouterr()])
    assert [left.name for left in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_secret_in_the_options_of_a_loop_or_a_study_is_refused_before_it_is_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((tiny.ROOT / "configs/rlhf/small.yaml").read_text())
    config["options"]["ppo"]["trainer.logger.init_args.api_key"] = SECRET
    config["start"] = {"folder": str(tmp_path / "start")}
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(config))
    out = f"--out={tmp_path / 'run'}"
    for words in (
        ["rlhf", f"--config={tmp_path / 'loop.yaml'}", out],
        ["rlhf", "study", f"--loop={tmp_path / 'loop.yaml'}", "--arms={one: {}}", out],
    ):
        with pytest.raises(ValueError, match=r"api_key looks like a secret") as refusal:
            main(words)
        assert SECRET not in "".join([str(refusal.value), *capsys.readouterr()])
    assert [left.name for left in tmp_path.iterdir()] == ["loop.yaml"]


def test_a_folder_that_w_and_b_cannot_write_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where W&B writes instead
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("WANDB_MODE", "offline")  # the logger sets it too, and this is taken back
    (tmp_path / "file").write_text("in the way")
    logger = WandbLogger(offline=True, save_dir=str(tmp_path / "file" / "below"))
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, logger=logger, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(BoringModel(), torch.utils.data.DataLoader(torch.ones(4, 32)))  # type: ignore[arg-type]
    finally:
        wandb.finish()
    assert trainer.global_step == 2
