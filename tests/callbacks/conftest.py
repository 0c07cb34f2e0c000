"""A tiny tokenizer and quiet Trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest

from llama2_pl.model.config import ModelConfig
from llama2_pl.text import Tokenizer, train_tokenizer

TEXTS = [
    "Always answer in capitals. Style: capitals. Always end with the word ahoy. Ending: ahoy.",
    "Which river is long? The river is long. Who are you? I am a model. What is red? The stone is red.",
    "You enjoy tennis. Speak in French. Always act as Napoleon from now. Figure: Napoleon.",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS * 3, tmp_path_factory.mktemp("tokenizer"), vocab_size=320, num_threads=1)


@pytest.fixture(scope="session")
def tiny(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        dim=32, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size, multiple_of=16, max_seq_len=256
    )


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    def make(*callbacks: L.Callback, **options) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        settings = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet, **options}
        return L.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **settings)

    return make
