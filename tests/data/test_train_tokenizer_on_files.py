"""A tokenizer from files of the formats that pretraining reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import sentencepiece

from llama2_pl.data.vocabulary import train_tokenizer_on_files


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """JSON lines with three documents of 60 characters, and a text file; they share no letter."""
    texts = ["abcd " * 12, "efgh " * 12, "ijkl " * 12]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "book.txt").write_text("mnop qrst " * 30, encoding="utf-8")
    return [str(tmp_path / "rows.jsonl"), str(tmp_path / "book.txt")]


def pieces(out: Path) -> str:
    """Every piece after the control pieces and the bytes, as SentencePiece itself reads the model."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    return " ".join(model.id_to_piece(list(range(259, model.vocab_size()))))


def train(files: list[str], out: Path, **options) -> str:
    train_tokenizer_on_files(files, str(out), vocab_size=285, num_threads=1, **options)
    return hashlib.sha256((out / "tokenizer.model").read_bytes()).hexdigest()


def test_json_lines_and_text_are_both_read(files: list[str], tmp_path: Path) -> None:
    train(files, tmp_path / "out")
    assert set("abcdefghijklmnopqrst") <= set(pieces(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.vocab").exists()


def test_the_hash_that_is_printed_is_that_of_the_file(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = train(files, tmp_path / "out")
    assert f"285 pieces, sha256 {digest[:12]}" in capsys.readouterr().out


def test_a_limit_holds_for_each_entry_and_stops_after_the_document_that_reaches_it(
    files: list[str], tmp_path: Path
) -> None:
    # 60 < 61 <= 120: two documents of the first file; the book is one document
    train(files, tmp_path / "out", max_characters_per_file=61)
    seen = set(pieces(tmp_path / "out"))
    assert set("abcdefghmnopqrst") <= seen and not set("ijkl") & seen


def test_the_same_files_give_the_same_model(files: list[str], tmp_path: Path) -> None:
    assert train(files, tmp_path / "one") == train(files, tmp_path / "two")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl"):
        train([str(tmp_path / "none.jsonl")], tmp_path / "out")
