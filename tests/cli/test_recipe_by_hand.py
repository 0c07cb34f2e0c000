"""The commands of the README, at the tiny size: what one stage writes is what the next one reads."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from llama2_pl.cli import main

ROOT = Path(__file__).parents[2]
TRAINED = ("pretrain", "sft", "reward_helpfulness", "reward_safety", "rejection_sampling_sft", "ppo")


def write_rows(path: str, rows: list[dict]) -> None:
    file = Path("runs/data") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data() -> None:
    """A data set of a few rows in the layout of `llama2-pl data default`; that one takes too long for a test."""

    def user(n: int) -> dict:
        return {"role": "user", "content": f"Which is bigger, {n} or {n + 3}?"}

    def pair(n: int, safety: bool) -> dict:
        labels = {"chosen_safe": True, "rejected_safe": False} if safety else {}
        return {
            "prompt": [user(n)],
            "chosen": f"{n + 3} is.",
            "rejected": "Go away.",
            "rating": n % 4,
            **labels,
        }

    words = "the cat sat on a mat and the old man of the big red house ran to his dog".split()
    for number, source in enumerate(("world", "prose", "docs", "code"), 1):
        rows = [
            {"text": " ".join(words[(i * number + j) % len(words)] for j in range(60))} for i in range(120)
        ]
        write_rows(f"corpus/{source}.jsonl", rows)
    for split, numbers in (("train", range(24)), ("val", range(50, 58))):
        dialogues = [
            {"messages": [user(n), {"role": "assistant", "content": f"{n + 3} is."}]} for n in numbers
        ]
        write_rows(f"sft/{split}.jsonl", dialogues)
        write_rows(
            f"prompts/{split}.jsonl", [{"messages": [user(n)], "is_safety": n % 4 == 0} for n in numbers]
        )
        write_rows(f"preferences/helpful_{split}.jsonl", [pair(n, False) for n in numbers])
        write_rows(f"preferences/safety_{split}.jsonl", [pair(n, True) for n in numbers])


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
        return [word.replace("2048", "300") for word in command]
    if "rejection_sampling.yaml" in " ".join(command):
        return [*command, "--model.samples_per_prompt=2", "--model.max_new_tokens=8"]
    sized = command[0] == "fit" and "ppo.yaml" not in " ".join(command)
    return [*command, "--model.backbone.vocab_size=300"] if sized else command


@pytest.mark.timeout(120)
def test_the_readme_s_recipe_runs_stage_after_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the W&B logger is built, and writes nothing
    write_data()
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
