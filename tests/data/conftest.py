"""A tiny tokenizer, small files of every kind, and a module that records what it is trained on."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch

from llama2_pl.text import Tokenizer, train_tokenizer

WORDS = [
    "river",
    "stone",
    "lamp",
    "winter",
    "copper",
    "garden",
    "signal",
    "paper",
    "engine",
    "violet",
    "thunder",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [inspect.getsource(argparse), inspect.getsource(textwrap), " ".join(WORDS)]
    return train_tokenizer(texts, tmp_path_factory.mktemp("data-tokenizer"), vocab_size=500, num_threads=1)


@pytest.fixture(scope="session")
def sentence() -> Callable[[int, int], str]:
    """Sentence number i of some words, no two alike."""

    def make(i: int, words: int = 8) -> str:
        return " ".join([str(i), *(WORDS[(i * 5 + k * (1 + i % 7)) % len(WORDS)] for k in range(words))])

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list], str]:
    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


class Recorder(L.LightningModule):
    """Learns nothing; remembers the first tokens of every row it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tokens[:, :6].flatten().tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx: int) -> None:
        self.validated.append(batch.tokens[:, :6].flatten().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    def make(**options) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        defaults = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "limit_val_batches": 0}
        return L.Trainer(default_root_dir=tmp_path, **{**quiet, **defaults, **options})

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(__file__).parents[2]
    folder = root / os.environ.get("LLAMA2_PL_SHARED_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLAMA2_PL_SHARED_DATA")
    return folder
