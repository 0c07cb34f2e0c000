"""Tiny networks, a tiny tokenizer and Trainers without output."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import disable_possible_user_warnings

from llama2_pl.data.batches import Batch, PreferenceBatch, PromptBatch
from llama2_pl.model.config import ModelConfig
from llama2_pl.text.tokenizer import train_tokenizer

VOCAB = 290


@pytest.fixture(autouse=True)
def quiet_and_repeatable():
    disable_possible_user_warnings()
    L.seed_everything(0, verbose=False)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=VOCAB, multiple_of=16, max_seq_len=64
    )


@pytest.fixture
def trainer():
    """A function that makes a quiet CPU Trainer."""

    def make(**options) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        return L.Trainer(accelerator="cpu", devices=1, **(quiet | options))

    return make


@pytest.fixture
def save(tmp_path):
    """A function that writes a module's checkpoint and returns its path."""

    def write(module: L.LightningModule, name: str) -> str:
        module.configure_model()
        path = str(tmp_path / name)
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    text = "the cat sat on the mat and the dog ran to the house of the old man in a big red coat"
    words = text.split()
    lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(lines, folder, vocab_size=VOCAB)
    return str(folder / "tokenizer.model")


def token_batch(rows: int = 2, length: int = 12, targets: int | None = None, seed: int = 0) -> Batch:
    """Random tokens of one document per row; the first `targets` positions after the BOS count, or all."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB, (rows, length), generator=generator)
    loss_mask = torch.ones(rows, length, dtype=torch.bool)
    loss_mask[:, 0] = False
    if targets is not None:
        loss_mask[:, targets + 1 :] = False
    return Batch(tokens, loss_mask, torch.zeros(rows, length, dtype=torch.int32))


def pair_batch(pairs: int = 4, seed: int = 0, is_safe: torch.Tensor | None = None) -> PreferenceBatch:
    """Chosen rows hold small ids, rejected rows large ones: easy to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(10, 100, (pairs, 10), generator=generator)
    rejected = torch.randint(150, 250, (pairs, 10), generator=generator)
    lengths = torch.randint(6, 11, (2 * pairs,), generator=generator)
    tokens = torch.cat([chosen, rejected])
    tokens[torch.arange(10) >= lengths[:, None]] = 0
    unknown = torch.full((2 * pairs,), float("nan"))
    return PreferenceBatch(
        tokens,
        lengths,
        torch.arange(pairs) % 4,
        unknown if is_safe is None else is_safe,
        torch.arange(pairs) % 2,
    )


def prompt_batch(prompts: int = 8, first: int = 0) -> PromptBatch:
    """Prompts of 3 to 5 tokens that differ."""
    ids = [[1, *range(10 + i, 12 + i + i % 3)] for i in range(first, first + prompts)]
    index = torch.arange(first, first + prompts)
    return PromptBatch(ids, index % 2 == 0, index)


class Listed(torch.utils.data.Dataset):
    """Ready-made batches as a data set."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, n: int):
        return self.batches[n]


def loader(batches: list) -> torch.utils.data.DataLoader:
    """In order, one ready-made batch at a time."""
    return torch.utils.data.DataLoader(Listed(batches), batch_size=None, collate_fn=lambda batch: batch)


@pytest.fixture
def make():
    """The makers above, since a test file cannot import its conftest."""

    class Makers:
        tokens = staticmethod(token_batch)
        pairs = staticmethod(pair_batch)
        prompts = staticmethod(prompt_batch)
        loader = staticmethod(loader)

    return Makers
