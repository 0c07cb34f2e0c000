"""Versions 1 to N at the smallest size: the whole loop, what is skipped, what is refused, what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama2_pl.cli import main
from llama2_pl.data.default import write, write_default_data
from llama2_pl.data.vocabulary import train_tokenizer_on_files
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.tokenizer import Tokenizer

VOCABULARY = 512
CONFIG = ModelConfig(
    dim=32, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=512
)


def chatterbox(path: Path, eos_id: int) -> str:
    """A checkpoint of a random model that ends its answers: EOS has a chance of about one in eight."""
    network = LanguageModel(CONFIG)
    with torch.no_grad():
        # the first channel is all that is left after the norm, sqrt(32) high: EOS has a logit of about 4.3
        network.backbone.embedding.weight[:, 0] = 1.0
        network.head.weight[:, 0] = 0.0
        network.head.weight[eos_id, 0] = 0.75
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"backbone": CONFIG.to_dict()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, tokenizer and a chat model."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PACKAGE_SOURCES", {})
        write_default_data(str(folder / "data"), scale=0.02)
    train_tokenizer_on_files(
        [str(folder / "data/corpus/world.jsonl")], str(folder), vocab_size=VOCABULARY, num_threads=1
    )
    torch.manual_seed(0)
    chatterbox(folder / "chat.ckpt", Tokenizer(str(folder / "tokenizer.model")).eos_id)
    return folder


def config_of(start: Path) -> dict:
    """The smallest run that has everything: two versions, the second with PPO."""
    data = "$START/data"
    stages = {
        "reward_helpfulness": "reward",
        "reward_safety": "reward",
        "rejection_sampling": None,
        "rejection_sampling_sft": "sft",
        "ppo": "ppo",
    }
    files = [
        [f"stage/{stage}.yaml", *([f"size/{size}/tiny.yaml"] if size else []), "trainer/cpu.yaml"]
        for stage, size in stages.items()
    ]
    backbone = {
        f"model.backbone.{key}": value for key, value in CONFIG.to_dict().items() if value is not None
    }
    plain = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
    names = ["reward_helpfulness", "reward_safety", "best_of_k", "fine_tune", "ppo"]
    own = {
        "reward_helpfulness": {**backbone, "data.max_len": 256},
        "reward_safety": {**backbone, "data.max_len": 256},
        "best_of_k": {"data.batch_size": 8},
        "fine_tune": {**backbone, "data.seq_len": 256, "data.epochs": 1},
        "ppo": {},
    }
    return {
        "start": {"folder": str(start)},
        "files": {
            "policy": "$START/chat.ckpt",
            "base": "$START/chat.ckpt",
            "tokenizer": "$START/tokenizer.model",
            "prompts": f"{data}/prompts/train.jsonl",
            "held_out": f"{data}/prompts/val.jsonl",
            "helpful": [f"{data}/preferences/helpful_val.jsonl"],
            "safety": [f"{data}/preferences/safety_val.jsonl"],
            "helpful_val": [f"{data}/preferences/helpful_val.jsonl"],
            "safety_val": [f"{data}/preferences/safety_val.jsonl"],
        },
        "configs": dict(zip(names, files, strict=True)),
        "options": {name: {**plain, **options} for name, options in own.items()},
        "sampling": {
            "samples_per_prompt": 2,
            "temperatures": [0.8, 1.2],
            "sweep_prompts": 4,
            "max_new_tokens": 16,
            "pool": "all",
        },
        "every": {"save": 1, "candidate": 1, "look": 1},
        "versions": 2,
        "ppo_from": 2,
        "answers_per_prompt": 1,
    }


def rlhf(folder: Path, config: dict, *words: str) -> None:
    path = folder / "rlhf.json"
    path.write_text(json.dumps(config))
    main(["rlhf", f"--config={path}", f"--out={folder / 'run'}", *words])


@pytest.fixture(scope="module")
def done(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        rlhf(folder, config_of(start))
    return folder


def test_whole(done):
    print(sorted(p.name for p in (done / "run").rglob("*.json")))
