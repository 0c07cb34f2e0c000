"""A data set of a few rows and the commands of all stages at the tiny size, from the packaged configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
VOCABULARY = 300


class Stage(NamedTuple):
    """A command that is killed.

    Attributes:
        words: after `llama2-pl`, for the first start.
        again: the words that a restart adds.
        out: the folder it writes to.
        ranks: processes.
    """

    name: str
    words: list[str]
    again: list[str]
    out: str
    ranks: int = 1


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path) -> None:
    """In the layout of `llama2-pl data default`, which takes longer."""

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
        write_rows(folder / f"corpus/{source}.jsonl", rows)
    for split, numbers in (("train", range(24)), ("val", range(50, 58))):
        dialogues = [
            {"messages": [user(n), {"role": "assistant", "content": f"{n + 3} is."}]} for n in numbers
        ]
        prompts = [{"messages": [user(n)], "is_safety": n % 4 == 0} for n in numbers]
        write_rows(folder / f"sft/{split}.jsonl", dialogues)
        write_rows(folder / f"prompts/{split}.jsonl", prompts)
        write_rows(folder / f"preferences/helpful_{split}.jsonl", [pair(n, False) for n in numbers])
        write_rows(folder / f"preferences/safety_{split}.jsonl", [pair(n, True) for n in numbers])


def write_configs(folder: Path) -> None:
    """For each stage what differs from its packaged config: a checkpoint after every step, nothing on the screen."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    held_out = {
        "prompts": "runs/data/prompts/val.jsonl",
        "tokenizer": "runs/tokenizer/tokenizer.model",
        "dirpath": "runs/ppo",
        "every_n_iterations": 1,
        "max_new_tokens": 8,
    }
    for name in ("pretrain", "sft", "reward", "ppo", "predict", "ddp", "sharded"):
        saving = {
            "dirpath": f"runs/{name}",
            "every_n_train_steps": 1,
            "save_last": True,
            "save_top_k": 0,
            "enable_version_counter": False,
        }
        callbacks = [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving},
            {"class_path": "llama2_pl.callbacks.PreemptionCheckpoint", "init_args": {"every_n_steps": 1}},
        ]
        if name == "ppo":
            looked = "llama2_pl.callbacks.HeldOutPromptEarlyStopping"
            callbacks.append({"class_path": looked, "init_args": held_out})
        trainer = {**quiet, "default_root_dir": f"runs/{name}", "callbacks": callbacks}
        if name == "predict":
            trainer["callbacks"] = []
        if name in ("ddp", "sharded"):
            trainer |= _two_processes(name)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": trainer}))


def _two_processes(name: str) -> dict:
    classes = {
        "ddp": ("DDPStrategy", {"process_group_backend": "gloo"}),
        "sharded": (
            "ModelParallelStrategy",
            {"data_parallel_size": 2, "tensor_parallel_size": 1, "process_group_backend": "gloo"},
        ),
    }
    kind, options = classes[name]
    strategy = {"class_path": f"lightning.pytorch.strategies.{kind}", "init_args": options}
    return {"devices": 2, "strategy": strategy, "precision": "32-true"}


def tokenizer_command() -> list[str]:
    files = "[runs/data/corpus/world.jsonl, runs/data/corpus/prose.jsonl]"
    words = ["tokenizer", "train", "--files", files, "--out", "runs/tokenizer"]
    return [*words, "--vocab_size", str(VOCABULARY)]


def stages() -> dict[str, Stage]:
    """In the order in which each finds what it reads."""
    configs = ROOT / "configs"

    def words(name: str, stage: str, *size: str) -> list[str]:
        files = [configs / f"stage/{stage}.yaml", *(configs / f"size/{part}/tiny.yaml" for part in size)]
        paths = [*files, configs / "trainer/cpu.yaml", Path(f"{name}.yaml")]
        return [word for path in paths for word in ("--config", str(path))]

    def fit(name: str, stage: str, size: str, *options: str, ranks: int = 1) -> Stage:
        sized = [f"--model.backbone.vocab_size={VOCABULARY}"] if size == "pretrain" else []
        command = ["fit", *words(name, stage, size), *sized, *options]
        return Stage(name, command, ["--ckpt_path", "last"], f"runs/{name}", ranks)

    reward = "runs/reward/last.ckpt"
    models = ["--model.policy=runs/sft/last.ckpt", f"--model.helpfulness_reward={reward}"]
    models += [f"--model.safety_reward={reward}"]
    answers = ["--model.samples_per_prompt=4", "--model.max_new_tokens=24", "--data.batch_size=1"]
    predict = ["predict", *words("predict", "rejection_sampling"), *models, *answers]
    steps = "--trainer.max_steps=12"
    table = [
        fit("pretrain", "pretrain", "pretrain", steps),
        fit("sft", "sft", "sft", "--data.epochs=3"),
        fit("reward", "reward_helpfulness", "reward", "--data.epochs=2"),
        Stage("predict", [*predict, "--model.out=runs/predict"], [], "runs/predict"),
        fit("ppo", "ppo", "ppo", *models, "--data.num_batches=4"),
        fit("ddp", "pretrain", "pretrain", steps, "--data.batch_size=2", ranks=2),
        fit("sharded", "pretrain", "pretrain", steps, "--data.batch_size=2", ranks=2),
    ]
    return {stage.name: stage for stage in table}
