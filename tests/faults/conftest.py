"""A tiny tokenizer and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llama2_pl.text import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["the cat sat on the mat and the dog ran [INST] [/INST] <<SYS>> <</SYS>> INST SYS" * 5]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=300, num_threads=1)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list], str]:
    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
