"""The commands of the README, at the tiny size: what one stage writes is what the next one reads."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.chaos import tiny
from llama2_pl.cli import main

ROOT = Path(__file__).parents[2]
TRAINED = ("pretrain", "sft", "reward_helpfulness", "reward_safety", "rejection_sampling_sft", "ppo")


def readme_commands() -> list[list[str]]:
    """The recipe by hand of the README, its size replaced by the tiny one.

    Left out are the data, the chat, and Ghost Attention, which needs a model whose answers end.
    """
    block = re.findall(
        r"```bash\n(llama2-pl data default.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )[0]
    block = block.replace("/demo.yaml", "/tiny.yaml").replace("configs/", f"{ROOT}/configs/")
    lines = [shlex.split(line)[1:] for line in block.splitlines() if line]
    return [line for line in lines if line[0] not in {"data", "chat"} and "gatt.yaml" not in " ".join(line)]


def at_tiny_size(command: list[str]) -> list[str]:
    if command[0] == "tokenizer":
        return [word.replace("2048", str(tiny.VOCABULARY)) for word in command]
    if "rejection_sampling.yaml" in " ".join(command):
        return [*command, "--model.samples_per_prompt=2", "--model.max_new_tokens=8"]
    sized = "pretrain.yaml" in " ".join(command)
    return [*command, f"--model.backbone.vocab_size={tiny.VOCABULARY}"] if sized else command


@pytest.mark.timeout(120)
def test_the_readme_s_recipe_runs_stage_after_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the W&B logger is built, and writes nothing
    tiny.write_data(Path("runs/data"))
    for command in readme_commands():
        main(at_tiny_size(command))
    for stage in TRAINED:
        folder = Path("runs") / stage
        assert (folder / "last.ckpt").exists(), stage
        assert list(folder.rglob("config-*.yaml")) and list(folder.rglob("metrics.csv")), stage
    winners = [json.loads(line) for line in Path("runs/winners.jsonl").read_text().splitlines()]
    assert 0 < len(winners) <= 24
    assert [message["role"] for message in winners[0]["messages"]] == ["user", "assistant"]
    footprint = json.loads(Path("runs/ppo/carbon.json").read_text())
    assert footprint["stages"]["ppo"]["hours"] > 0
