"""A tiny tokenizer trained once, and the real one where the shared data is."""

from __future__ import annotations

import argparse
import inspect
import json.decoder
import os
import textwrap
from pathlib import Path

import pytest

from llama2_pl.text import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [inspect.getsource(module) for module in (argparse, json.decoder, textwrap)]


@pytest.fixture(scope="session")
def tiny(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=700, num_threads=1)


@pytest.fixture(scope="session")
def tokenizer_data() -> Path:
    root = Path(__file__).parents[2]
    folder = root / os.environ.get("LLAMA2_PL_SHARED_DATA", "../shared/data") / "tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLAMA2_PL_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def llama(tokenizer_data: Path) -> Tokenizer:
    return Tokenizer(tokenizer_data / "llama2" / "tokenizer.model")
